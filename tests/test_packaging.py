"""Installation: the core without extras, what a command says without its extra, and what wheel and sdist hold."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hub_server import WRITER, Hub
from lstsd_hf.glue.tasks import TASKS

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
SOURCE = ROOT / "src" / "lstsd_hf"

# Trains, records, resumes and pushes.
SCRIPT = """
import sys
from importlib.util import find_spec
import numpy as np
from toys import config, rows, tiny_bert
from lstsd_hf import LogitsStore, LSTSDTrainer, add_sample_ids

data = add_sample_ids(rows(32))
for checkpoint in (None, True):
    args = config("out", save_strategy="epoch", hub_model_id="tester/bare", hub_token=sys.argv[1], push_logits=True)
    trainer = LSTSDTrainer(tiny_bert(), args, train_dataset=data)
    trainer.train(resume_from_checkpoint=checkpoint)
store = LogitsStore.open("out/_logits")
store.verify()
assert store.sealed_epochs == [0, 1, 2, 3, 4]
assert np.isfinite(store.read(4, list(range(32)))).all()
trainer.push_to_hub()
missing = [name for name in ("sklearn", "scipy", "plotly", "itables") if find_spec(name) is None]
print("missing:", *missing)
"""


def requirements(*extras: str) -> list[Requirement]:
    """What setup.cfg declares for the core and some extras."""
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    groups = [declared["options"]["install_requires"], *(declared["options.extras_require"][name] for name in extras)]
    return [Requirement(line) for group in groups for line in group.split("\n") if line]


def link_environment(parent: Path, wanted: Iterable[Requirement]) -> Path:
    """Makes a folder with links to the packages that the requirements bring, and to no other installed package."""
    folder = parent / "site-packages"  # dill, which hashes functions for `datasets`, knows installed modules by it
    folder.mkdir()
    todo, seen = list(wanted), set()
    while todo:
        requirement = todo.pop()
        extras = ("", *requirement.extras)
        if (requirement.name.lower(), extras) in seen:
            continue
        seen.add((requirement.name.lower(), extras))
        found = distribution(requirement.name)
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(found.locate_file(name))
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return folder


def run(code: str, path: list[Path], *argv: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs code with the standard library and the packages in some folders."""
    start = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code, *argv],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


COMMAND = "from lstsd_hf.cli import main; main()"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install lstsd-hf` brings."""
    return link_environment(tmp_path_factory.mktemp("bare"), requirements())


def test_the_core_trains_records_resumes_and_pushes_without_extras(bare: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        done = run(SCRIPT, [bare, SOURCE.parent, TESTS], WRITER, cwd=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("missing: sklearn scipy plotly itables\n")
        assert "_logits/epoch-0004.npy" in hub.repos["tester/bare"].files


@pytest.mark.parametrize(
    ("argv", "extra"), [(["train", "mrpc"], "train"), (["completion", "bash"], "train"), (["report", "out"], "report")]
)
def test_a_command_says_which_extra_it_needs(bare: Path, tmp_path: Path, argv: list[str], extra: str) -> None:
    done = run(COMMAND, [bare, SOURCE.parent], *argv, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"lstsd {argv[0]}: error: The package ")
    assert done.stderr.endswith(
        f" is missing: expected the extra '{extra}'. Install it: pip install 'lstsd-hf[{extra}]'\n"
    )
    assert done.stderr.count("\n") == 1


def imported(path: Path) -> set[str]:
    """The names of the packages, other than the standard library's, that a module imports at any place."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_import_what_is_declared_for_them(path: Path) -> None:
    extras = {"glue": ["train"], "report": ["report"]}.get(path.relative_to(SOURCE).parts[0], [])
    modules = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
    declared = {modules.get(one.name.lower(), one.name.lower()) for one in requirements(*extras)}
    assert imported(path) <= declared


# --- wheel and sdist ---


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    unwanted = (".*_cache", ".git", ".hypothesis", ".venv", "*.egg-info", "__pycache__", "build", "dist", "runs")
    shutil.copytree(ROOT, folder / "project", ignore=shutil.ignore_patterns(*unwanted), symlinks=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "project")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The content of the wheel."""
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(built / "wheel")
    return built / "wheel"


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    """The content of the sdist, which the wheel was built from."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(built / "sdist", filter="data")
    return built / "sdist" / path.name.removesuffix(".tar.gz")


def test_the_index_would_take_both(built: Path) -> None:
    files = [str(path) for path in built.iterdir() if path.is_file()]
    assert len(files) == 2
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "".join(done.stdout.split()).count(":PASSED") == 2  # twine wraps long lines


def test_metadata(wheel: Path) -> None:
    (path,) = wheel.glob("*.dist-info/METADATA")
    found: Message = message_from_bytes(path.read_bytes())
    assert (found["Name"], found["License-Expression"]) == ("lstsd-hf", "Apache-2.0")
    assert (found["Author"], found["Requires-Python"]) == ("The lstsd_hf developers", ">=3.10")
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2003.00739"]
    assert {"report", "train", "all"} <= set(found.get_all("Provides-Extra"))
    needed = [Requirement(line) for line in found.get_all("Requires-Dist")]
    core = {one.name for one in needed if one.marker is None}
    assert core == {one.name for one in requirements()}
    assert not core & {"scikit-learn", "scipy", "PyYAML", "plotly", "itables", "jinja2"}
    everything = next(one for one in needed if one.name == "lstsd-hf" and one.marker.evaluate({"extra": "all"}))
    assert everything.extras == {"report", "train"}


def test_the_wheel_holds_what_the_commands_read(wheel: Path) -> None:
    package = wheel / "lstsd_hf"
    assert (package / "py.typed").is_file()
    assert sorted(path.stem for path in (package / "glue" / "configs").glob("*.yaml")) == sorted(TASKS)
    for name in ("page.html", "page.css", "page.js", "page.report.html", "page.report.js", "page.comparison.html"):
        assert (package / "report" / name).is_file()
    assert {path.relative_to(package) for path in package.rglob("*.py")} == {
        path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")
    }


def test_the_sdist_holds_what_a_developer_needs(sdist: Path) -> None:
    kept = ["README.md", "CHANGELOG.md", "LICENSE", "Makefile", "constraints.txt", "setup.cfg", "pyproject.toml"]
    kept += [".ci/run", "configs/demo.yaml", "configs/glue/mrpc.yaml", "scripts/demo.py"]
    kept += [f"tests/{path.name}" for path in TESTS.glob("*.py")]
    assert [name for name in kept if not (sdist / name).is_file()] == []


def test_the_sdists_tests_run(sdist: Path) -> None:
    tests = ["tests/test_dynamics.py", "tests/test_glue_tasks.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=sdist,
        env=os.environ | {"PYTHONPATH": str(sdist / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_train_needs_the_wheel_and_its_extra_alone(
    wheel: Path, model: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = link_environment(tmp_path_factory.mktemp("train"), requirements("train"))
    (tmp_path / "MRPC").mkdir()
    rows = [f"{i % 2}\t{i}\t{i}\tthe film was good\tthe film was {('bad', 'good')[i % 2]}\n" for i in range(16)]
    for split in ("train", "dev"):
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        (tmp_path / "MRPC" / f"{split}.tsv").write_text(header + "".join(rows), encoding="utf-8")
    argv = ["train", "mrpc", "--data_dir", str(tmp_path), "--model_name_or_path", model, "--use_cpu"]
    argv += ["--output_dir", "out", "--disable_tqdm", "true"]
    offline = {"HF_HUB_OFFLINE": "1"}
    done = run(COMMAND, [environment, wheel], *argv, "--report", cwd=tmp_path, **offline)
    assert done.returncode == 2
    assert done.stderr.endswith("Install it: pip install 'lstsd-hf[report]'\n")
    assert not (tmp_path / "out").exists()
    done = run(COMMAND, [environment, wheel], *argv, cwd=tmp_path, **offline)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "all_results.json").is_file()


@pytest.mark.slow
def test_in_a_new_environment(built: Path, tmp_path: Path) -> None:
    """Takes minutes: tests what pip installs, and nothing else."""
    (path,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "venv"], cwd=tmp_path, check=True)
    python, lstsd = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "lstsd"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, path], cwd=tmp_path, check=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    with Hub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [python, "script.py", WRITER],
            cwd=tmp_path,
            env=os.environ | settings | {"PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("missing: sklearn scipy plotly itables\n")
    for extra, argv in (("report", ["report", "out"]), ("train", ["completion", "bash"])):
        done = subprocess.run([lstsd, *argv], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.endswith(f"pip install 'lstsd-hf[{extra}]'\n")
        subprocess.run([*install, f"{path}[{extra}]"], cwd=tmp_path, check=True)
        done = subprocess.run([lstsd, *argv], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
