"""The code and the commands in the documentation run as they stand there."""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import DatasetDict
from transformers import AutoTokenizer, Trainer, TrainingArguments

import lstsd_hf
from lstsd_hf import LogitsStore, LSTSDMixin, cli
from toys import BAD, GOOD, rows, tiny_bert

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["docs/extend.md", "docs/teachers.md"])
def test_the_code_of_a_page_runs(page):
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_code_of_the_readme_runs(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks in order, with the names that it expects the reader to have."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {name: getattr(lstsd_hf, name) for name in lstsd_hf.__all__}
    names |= {"model": tiny_bert(), "tokenizer": AutoTokenizer.from_pretrained(model), "dataclass": dataclass}
    names |= {"dataset": DatasetDict(train=rows(24), validation=rows(8, seed=1))}
    names |= {"Trainer": Trainer, "SomeTrainer": Trainer, "SomeConfig": TrainingArguments}
    for block in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        exec(compile(block, "README.md", "exec"), names)
    assert LogitsStore.open("out/_logits").sealed_epochs == list(range(6))
    assert issubclass(names["MyTrainer"], LSTSDMixin)


def commands(page: str) -> list[list[str]]:
    """The words of each command in a page's indented lines, without comments. Lines that a backslash joins are one."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("lstsd ", "torchrun ", "python "))]


@pytest.fixture(scope="module")
def place(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: models, files, GLUE."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("bert-base-uncased", "google-bert/bert-base-uncased"):
        shutil.copytree(model, folder / name)
    texts = [(f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]}", ("bad", "good")[i % 2]) for i in range(32)]
    for name in ("train.csv", "dev.csv", "test.csv"):
        (folder / name).write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    (folder / "GLUE" / "MRPC").mkdir(parents=True)
    rows = "".join(f"{i % 2}\t{i}\t{i}\t{text}\tthe film\n" for i, (text, _) in enumerate(texts))
    for name in ("train.tsv", "dev.tsv"):
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        (folder / "GLUE" / "MRPC" / name).write_text(header + rows)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(words[0] == "lstsd" for words in commands(page))])
def test_the_commands_of_a_page_run(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, as they stand there; but tasks are read from a folder, because there is no Hub here."""
    monkeypatch.chdir(place)
    for name in ("clean.csv", "relabelled.csv", "decisions.csv"):
        Path(name).unlink(missing_ok=True)
    if page != "README.md":  # the README's first command makes the run that other pages need
        cli.main(commands("README.md")[0][1:])
    for words in commands(page):
        if words[0] != "lstsd" or "--push_to_hub" in words:  # tests/test_hub.py pushes
            continue
        if words[1] == "train" and words[2] == "mrpc":
            words = [*words, "--data_dir", "GLUE", "--use_cpu"]
        cli.main(words[1 : words.index(">") if ">" in words else None])


@pytest.mark.parametrize("page", PAGES)
def test_what_other_commands_name_is_there(page: str) -> None:
    for words in commands(page):
        for word in words[1:]:
            if word.startswith(("scripts/", "configs/")) and words[words.index(word) - 1] != "--results":
                assert (ROOT / word).exists(), word


def test_the_tree_in_design_names_every_module():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    tree = text[: text.index("## One owner")]
    for path in (ROOT / "src/lstsd_hf").rglob("*.py"):
        if not path.name.startswith("_"):
            assert path.name in tree, f"{path.name} is not in docs/design.md"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md"])  # mkdocs checks docs/
def test_links_between_pages_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"
