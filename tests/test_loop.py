"""The loop of docs/labels.md, command by command as it stands there: train, look, decide, clean, train again."""

import csv
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lstsd_hf import LogitsStore, cli
from toys import BAD, GOOD

PAGE = Path(__file__).parents[1] / "docs" / "labels.md"
WRONG = (10, 31, 44)


def commands() -> list[list[str]]:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Writes the user's file to the folder that the commands run in; returns its rows."""
    monkeypatch.chdir(tmp_path)
    rows = [
        [f"the film was, {(BAD, GOOD)[i % 2][i // 2 % 4]}", ("bad", "good")[(i + (i in WRONG)) % 2]] for i in range(64)
    ]
    with open("train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    return rows


def test_each_command_works_at_the_first_try(model, rows, capsys):
    train, report, clean, again = commands()
    assert [command[:2] for command in (train, report, clean, again)] == [
        ["lstsd", name] for name in ("train", "report", "clean", "train")
    ]
    tiny = {"bert-base-uncased": model}
    settings = [
        "--num_train_epochs",
        "8",
        "--learning_rate",
        "5e-3",
        "--per_device_train_batch_size",
        "8",
        "--use_cpu",
    ]
    cli.main([*(tiny.get(word, word) for word in train[1:]), *settings])
    cli.main(report[1:])
    assert Path("out/_report/report.html").exists()
    samples = pq.read_table("out/_report/samples.parquet").to_pandas().sort_values("noise_rank")
    assert set(samples["sample_id"][:3]) == set(WRONG)
    with open("decisions.csv", "w", newline="") as file:  # as the report saves them after ten cards
        told = csv.writer(file)
        told.writerow(["sample_id", "decision", "label", "given"])
        for i in samples["sample_id"][:10]:
            given = rows[i][1]
            what = ["relabel", {"good": "bad", "bad": "good"}[given]] if i in WRONG[:2] else ["keep", ""]
            told.writerow([i, *(["drop", ""] if i == WRONG[2] else what), given])
    cli.main(clean[1:])
    assert "63 of 64 rows kept, 1 dropped, 2 of the kept ones relabelled" in capsys.readouterr().out
    with open("clean.csv", newline="") as file:
        found = list(csv.reader(file))[1:]
    assert found == [[text, ("bad", "good")[i % 2]] for i, (text, _) in enumerate(rows) if i != 44]
    cli.main([*(tiny.get(word, word) for word in again[1:]), *settings])
    assert LogitsStore.open("out_clean/_logits").index.num_rows == 63
