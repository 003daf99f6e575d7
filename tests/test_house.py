"""The shape of the package: which wing may import which, how long modules and classes are, what an import loads."""

import ast
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lstsd_hf

ROOT = Path(lstsd_hf.__file__).parent
# From the lowest up: each imports only what stands before it. The modules in BESIDE are outside this order.
FLOORS = ("paths", "extras", "store", "method", "config", "training", "report", "glue", "cli")
BESIDE = ("lstsd_hf", "lstsd_hf._version", "lstsd_hf.__main__")
MODULE_LINES, CLASS_LINES = 400, 250


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of this package that a module imports, wherever in its source."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from . import page` names a module; `from .page import write_page` names what is in one.
            inner = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else source for name in inner}
    return frozenset(found & set(MODULES))


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[1])


def test_imports_of_every_form_are_found():
    """If imports were missed, the rules about imports would prove nothing."""
    assert {"lstsd_hf.store", "lstsd_hf.method.loss", "lstsd_hf.config"} <= imports_of("lstsd_hf.training.mixin")
    assert {"lstsd_hf.store.manifest", "lstsd_hf.store.errors"} <= imports_of("lstsd_hf.store.folder")
    assert "lstsd_hf.training.place" in imports_of("lstsd_hf.training.recorder")  # from . import place
    assert "lstsd_hf.report" in imports_of("lstsd_hf.cli")  # in a function
    assert "lstsd_hf.training.trainer" in imports_of("lstsd_hf")  # for the type checker


@pytest.mark.parametrize("module", [module for module in MODULES if module not in BESIDE])
def test_no_wing_imports_upwards(module):
    assert "lstsd_hf" not in imports_of(module), "the package itself stands beside the wings, and imports them"
    inner = imports_of(module) - set(BESIDE)
    assert not {other for other in inner if floor(other) > floor(module)}


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in imports_of(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_classes_are_short(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MODULE_LINES
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno + 1 <= CLASS_LINES, node.name


@pytest.mark.parametrize(
    ("imported", "heavy"),
    [
        ("lstsd_hf", {"torch", "transformers", "datasets"}),
        ("lstsd_hf.cli", {"torch", "transformers", "datasets"}),
        ("lstsd_hf.store", {"torch", "transformers", "datasets"}),
        ("lstsd_hf.method", {"transformers", "accelerate", "datasets"}),
        ("lstsd_hf.report", {"torch", "transformers"}),
    ],
)
def test_an_import_loads_no_more_than_it_needs(imported, heavy):
    """Imports a module and its submodules in a fresh process; of `lstsd_hf` the package alone."""
    names = [
        name for name in MODULES if name == imported or (name.startswith(f"{imported}.") and imported != "lstsd_hf")
    ]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    loaded = {heavy} & set(sys.modules)
    assert not loaded, f"{{name}} loads {{loaded}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_shows_its_public_names():
    public = {"DistillationArguments", "LSTSDConfig", "LSTSDMixin", "LSTSDTrainer", "LogitsStore", "add_sample_ids"}
    public |= {"StoreError", "StoreMismatchError", "StoreCorruptionError", "write_report"}
    assert public <= set(dir(lstsd_hf))
    for name in dir(lstsd_hf):
        getattr(lstsd_hf, name)
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = lstsd_hf.Trainer
