"""The benchmark of outside teachers: a small grid, resumed, and its tables."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import benchmark_teachers as benchmark
import pytest
from benchmark_teachers import Lesson

from benchmark_heads import Size
from quality import grid
from quality.rows import Cell


@pytest.fixture
def small(model, text_layout, tmp_path, monkeypatch) -> Path:
    """Sets up two tasks and two seeds, trained in this process; returns GLUE's folder."""
    glue = tmp_path / "glue"
    for task, column in (("RTE", "sentence1"), ("MRPC", "#1 String")):
        (glue / task).mkdir(parents=True)
        sentences = [f"{task} {i} says that {i % 7} is not {i % 5}." for i in range(40)]
        (glue / task / "train.tsv").write_text("\n".join([column, *sentences]) + "\n", encoding="utf-8")
    (glue / "SST-2").symlink_to(Path(text_layout, "SST-2"))
    cell = Cell("sst2", train_samples=24, reserved_samples=8, test_samples=8)
    tasks = {"sst2": Lesson(cell, 2, (1,)), "language": Lesson(Size(8, 4, 16, 2), 2, (1,))}
    monkeypatch.setattr(benchmark, "TASKS", tasks)
    monkeypatch.setattr(benchmark, "MODEL", model)
    monkeypatch.setattr(benchmark, "SEEDS", range(2))
    monkeypatch.setattr(
        benchmark, "TRAINING", benchmark.TRAINING | {"bf16": False, "num_train_epochs": 2, "mini_generation_epochs": 1}
    )
    monkeypatch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    return glue


def test_a_small_grid_is_done_once_and_reported(small, tmp_path, monkeypatch, capsys):
    results, work = tmp_path / "results.jsonl", tmp_path / "work"
    command = ["--data_dir", str(tmp_path), "--glue_dir", str(small), "--work_dir", str(work)]
    command += ["--results", str(results)]
    benchmark.main(command)
    lines = benchmark.read(results)
    teachers, students = lines[:4], lines[4:]
    assert {line["method"] for line in teachers} == {"teacher"}
    assert [line["method"] for line in students] == [*benchmark.METHODS] * 4
    assert all({"key", "device", *benchmark.METRICS[line["task"]]} <= set(line) for line in lines)
    assert all((work / line["key"]).is_dir() for line in teachers)

    results.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    (work / "teachers.jsonl").unlink()  # as if the machine with the stores were lost
    trained = []
    monkeypatch.setattr(benchmark, "train", lambda run, **_: trained.append(run) or _line(lines, run))
    benchmark.main(command)
    assert [run.method for run in trained] == ["teacher", lines[-1]["method"]]
    assert benchmark.read(results) == lines
    assert pickle.loads(pickle.dumps(trained)) == trained

    capsys.readouterr()
    benchmark.main(["--report", str(results)])
    table = capsys.readouterr().out.splitlines()
    teacher, plain, outside = (
        sum(100 * line["score"] for line in lines if (line["task"], line["method"]) == ("sst2", method)) / 2
        for method in ("teacher", "plain", "outside")
    )
    assert table[2].startswith(
        f"| sst2: accuracy, x 100 | 1 | 2 | {teacher:.2f} | {plain:.2f} | {outside:.2f} | {outside - plain:+.2f} ± "
    )
    one = benchmark.report([line for line in lines if line["seed"] == 0])
    assert one.startswith("8 runs are missing.")
    assert "±" not in one


def _line(lines, run):
    return next(line for line in lines if line["key"] == run.key)


def test_a_lower_loss_is_a_win(small):
    runs = [run for teacher, students in benchmark.runs_of() for run in (teacher, *students)]
    losses = {"teacher": 1.0, "plain": 2.0, "outside": 1.5, "outside_long_short": 2.25}
    lines = [{"key": run.key, "nll": losses[run.method]} for run in runs if run.task == "language"]
    row = benchmark.report(lines).splitlines()[-1]
    assert "| 1.000 | 2.000 | 1.500 | -0.500 ± 0.000 (2-0) | 2.250 | +0.250 ± 0.000 (0-2) |" in row
