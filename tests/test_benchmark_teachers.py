"""The benchmark of outside teachers: a small grid of it, gone on with, and its tables."""

import benchmark_teachers as benchmark


def test_a_small_grid_is_done_once_and_reported(model, text_layout, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "MODEL", model)
    monkeypatch.setattr(benchmark, "TASKS", {"sst2": 8})
    monkeypatch.setattr(benchmark, "TRAIN_SAMPLES", 24)
    monkeypatch.setattr(benchmark, "TEST_SAMPLES", 8)
    monkeypatch.setattr(benchmark, "SEEDS", range(2))
    monkeypatch.setattr(benchmark, "TEACHER_LAYERS", 2)
    monkeypatch.setattr(benchmark, "STUDENT_LAYERS", (1,))
    monkeypatch.setattr(benchmark, "TRAINING", benchmark.TRAINING | {"bf16": False})
    results = tmp_path / "results.jsonl"
    whole = float("inf")
    benchmark.train_all(results, text_layout, tmp_path / "stores", 0.0)
    assert not results.exists()  # no time is left
    benchmark.train_all(results, text_layout, tmp_path / "stores", whole)
    lines = benchmark.read(results)
    assert [line["method"] for line in lines] == ["teacher", *benchmark.METHODS] * 2
    benchmark.train_all(results, text_layout, tmp_path / "stores", whole)
    assert benchmark.read(results) == lines

    table = benchmark.report(lines).splitlines()[-1]
    teacher, plain, outside = (
        sum(100 * line["score"] for line in lines if line["method"] == method) / 2
        for method in ("teacher", "plain", "outside")
    )
    assert table.startswith(
        f"| sst2 | 1 | 2 | {teacher:.1f} | {plain:.1f} | {outside:.1f} | {outside - plain:+.1f} ± "
    )
    one = benchmark.report([line for line in lines if line["seed"] == 0]).splitlines()[-1]
    assert one.startswith("| sst2 | 1 | 1 | ")
    assert "±" not in one
