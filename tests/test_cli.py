"""The command `lstsd`."""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import demo
import numpy as np
import pytest

from lstsd_hf import LogitsStore, StoreError, __version__, cli, read_history
from lstsd_hf.glue.arguments import flag_parser
from toys import BAD, GOOD


def leave(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    output = capsys.readouterr()
    return leaving.value.code, output.out, output.err


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert leave(capsys, "--version") == (0, f"lstsd {__version__}\n", "")


def test_help(capsys: pytest.CaptureFixture) -> None:
    code, out, _ = leave(capsys, "--help")
    assert code == 0
    assert "fine-tune on a GLUE task" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "lstsd: error: the following arguments are required: COMMAND. See lstsd --help.\n"),
        (("clena",), "lstsd: error: argument COMMAND: invalid choice: 'clena'"),
        (("store", "info"), "lstsd store: error: the following arguments are required: path. See"),
        (("store", "look", "x"), "lstsd store: error: argument action: invalid choice: 'look'"),
        (("report", ""), "lstsd report: error: run_dir is empty: expected a value.\n"),
        (("report", "x", "y", "--logits_dir", "a", ""), "lstsd report: error: logits_dir is empty: expected"),
        (("clean", "x", "--dataset", "y", "--drop", "-o", ""), "lstsd clean: error: output is empty: expected"),
        (("record", "--model", "x", "--dataset", "", "-o", "y"), "lstsd record: error: dataset is empty: expected"),
        (("store", "info", ""), "lstsd store: error: path is empty: expected"),
        (("report", "x", "--data", "y"), "lstsd report: error: unknown argument '--data'. See lstsd report --help.\n"),
    ],
)
def test_wrong_command(capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = leave(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["train", "glue"])
def test_help_of_train(capsys: pytest.CaptureFixture, name: str) -> None:
    code, out, _ = leave(capsys, name, "--help")
    assert code == 0
    assert out.startswith("usage: lstsd train [CONFIG] [--flag value ...]\n")
    lines = out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) < 80
    everything = flag_parser()[0].format_help()
    flags = re.findall(r"--[a-z0-9_-]+", out)
    assert len(flags) > 30
    for flag in flags:
        assert re.search(rf"{flag}\b", everything), flag


def test_help_of_every_flag(capsys: pytest.CaptureFixture) -> None:
    code, out, _ = leave(capsys, "train", "--help-all")
    assert code == 0
    for flag in ("--model_name_or_path", "--task_name", "--learning_rate", "--mini_generation_epochs", "--adam_beta1"):
        assert flag in out


@pytest.fixture(scope="module")
def bash_completion() -> str:
    with redirect_stdout(io.StringIO()) as out:
        cli.main(["completion", "bash"])
    return out.getvalue()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cl"], ["clean"]),
        (["train", "--mini_gen"], ["--mini_generation_epochs"]),
        (["train", "--teacher_trust", "conf"], ["confidence"]),
        (["report", "a_run"], ["a_run_of_mine"]),
    ],
)
def test_bash_completes_commands_flags_values_and_folders(
    tmp_path: Path, bash_completion: str, words: list[str], expected: list[str]
) -> None:
    (tmp_path / "completion").write_text(bash_completion, encoding="utf-8")
    (tmp_path / "a_run_of_mine").mkdir()
    line = " ".join(["lstsd", *words])
    code = f"source completion; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_lstsd; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == expected


@pytest.mark.parametrize("name", ["train", "glue"])
def test_train_gets_the_arguments_after_its_name(capsys: pytest.CaptureFixture, name: str) -> None:
    code, _, err = leave(capsys, name, "--model_name_or_path", "m", "--task_name", "rt", "--do_train")
    assert code == 2
    assert err.startswith(f"lstsd {name}: error: Unknown task_name 'rt': expected one of cola,")
    assert err.endswith("Did you mean 'rte'?\n")


def test_traceback_on_request(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        cli.main(["--traceback", "store", "info", str(tmp_path)])


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> LogitsStore:
        raise TypeError("a fault")

    monkeypatch.setattr(LogitsStore, "open", fail)
    with pytest.raises(TypeError, match="a fault"):
        cli.main(["store", "info", str(tmp_path)])


def test_an_error_is_one_line_that_a_terminal_does_not_obey(capsys: pytest.CaptureFixture) -> None:
    code, _, err = leave(capsys, "store", "info", "a\x1b[31m\nb\udc80")
    assert code == 2
    assert err.startswith("lstsd store: error: a\\x1b[31m b\\udc80 holds no logits store")
    assert err.count("\n") == 1


def test_each_process_of_several_says_its_own(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    _, _, err = leave(capsys, "store", "info", "nowhere")
    assert err.startswith("[process 1] lstsd store: error: nowhere holds no logits store")


@pytest.mark.parametrize("arguments", [["--help"], ["store", "info", "nowhere"]])
def test_starts_at_once_without_torch(arguments: list[str]) -> None:
    code = "import sys; from lstsd_hf.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("False\n")


def make_store(path: Path) -> None:
    store = LogitsStore.create(path, 1234, (3,), "float16", "1234 rows")
    store.record(0, np.arange(100), np.zeros((100, 3)))
    store.seal(0)
    store.record(1, [7], np.zeros((1, 3)))
    store.close()


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a shell in which `lstsd` is this version's, with its output buffered as for any user."""
    lstsd = f'lstsd() {{ {shlex.quote(sys.executable)} -m lstsd_hf "$@"; }}; '
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-c", lstsd + command], env=variables | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "code", "err"),
    [
        ("lstsd --version > /dev/full", 2, "lstsd: error: the output could not be written: No space left on"),
        ("lstsd train --help | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("PYTHONUNBUFFERED=1 lstsd completion bash | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("lstsd train --help >&-", 0, ""),
    ],
)
def test_output_that_nobody_takes(command: str, code: int, err: str) -> None:
    found = shell(command)
    assert (found.returncode, found.stderr.count("\n")) == (code, bool(err))
    assert found.stderr.startswith(err)


def test_a_name_that_the_terminals_encoding_lacks(tmp_path: Path) -> None:
    path = tmp_path / "\u0434\u0430"
    LogitsStore.create(path, 4, (2,), "float16", "test")
    found = shell(f"lstsd store verify {path}", PYTHONIOENCODING="latin-1")
    assert found.stdout == f"{tmp_path}/\\u0434\\u0430: every file is as it was written.\n"


def test_store_info(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_store(tmp_path / "s")
    cli.main(["store", "info", str(tmp_path / "s")])
    assert capsys.readouterr().out == (
        "samples:       1,234 (largest id plus 1)\n"
        "row:           float16, shape (3,)\n"
        "training set:  1234 rows\n"
        "sealed epochs: 0\n"
        "open epochs:   1\n"
        "on disk:       0.0 MB in 3 files\n"
    )


def test_store_verify(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_store(tmp_path / "s")
    cli.main(["store", "verify", str(tmp_path / "s")])
    assert "every file is as it was written" in capsys.readouterr().out
    file = tmp_path / "s" / "epoch-0000.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    code, _, err = leave(capsys, "store", "verify", str(tmp_path / "s"))
    assert code == 2
    assert err.startswith(f"lstsd store: error: {file} is damaged: expected checksum")
    code, _, err = leave(capsys, "store", "info", str(tmp_path / "nothing"))
    assert code == 2
    assert "holds no logits store" in err


def test_report_says_where_it_goes(capsys: pytest.CaptureFixture) -> None:
    _, out, _ = leave(capsys, "report", "--help")
    assert "or a checkpoint in it; the report goes to _report in the output_dir" in " ".join(out.split())


def test_the_demo(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The whole demo, but on other reviews, with another model, and without a process for each run."""
    config = ["text_columns: [text]", "do_train: true", "save_strategy: 'no'", "learning_rate: 1e-2"]
    (tmp_path / "demo.yaml").write_text("\n".join([f"model_name_or_path: {model}", *config]), encoding="utf-8")
    wrong = np.arange(40) % 11 == 0

    def draw(root: Path) -> np.ndarray:
        rows = [(f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]}", i % 2 ^ wrong[i % 40]) for i in range(40)]
        for name in ("train.csv", "validation.csv"):
            lines = [f"{text},{('negative', 'positive')[label]}\n" for text, label in rows]
            (root / name).write_text("text,label\n" + "".join(lines), encoding="utf-8")
        return wrong

    commands = []

    def run(command: list[str], **options: object) -> None:
        assert command[1:4] == ["-m", "lstsd_hf", "train"]
        commands.append(command[4:])
        cli.main(command[3:])

    monkeypatch.setattr(demo, "CONFIG", tmp_path / "demo.yaml")
    monkeypatch.setattr(demo, "draw_reviews", draw)
    monkeypatch.setattr(demo, "device_flags", lambda: ["--use_cpu"])
    monkeypatch.setattr(demo.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["demo.py", f"--output_dir={tmp_path / 'out'}", "--seed", "3", "--max_steps=60"])
    demo.main()
    assert all(command[-3:] == ["--seed", "3", "--max_steps=60"] for command in commands)
    out = capsys.readouterr().out
    for title in ("transformers.Trainer", "LSTSDTrainer", "LSTSDTrainer, wrong labels dropped"):
        assert re.search(rf"^{title} +\d+\.\d% +\d+\.\d%$", out, re.MULTILINE), title
    flagged = read_history(tmp_path / "out" / "lstsd").filter(lambda row: row["looks_wrong"])["sample_id"]
    found = sum(wrong[i] for i in flagged)
    assert f"found {found} of the 4 wrong labels, among the {len(flagged)} that look wrong" in out
    assert (tmp_path / "out" / "lstsd" / "_report" / "report.html").is_file()
