"""The benchmark of heads with many rows: a small grid on the real data, and its table."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from transformers import BertTokenizerFast

import benchmark_heads as benchmark
from quality import grid

SHARED = Path(benchmark.__file__).parents[2] / "shared"
DATA, GLUE = SHARED / "data", SHARED / "glue"
pytestmark = pytest.mark.skipif(not (DATA.is_dir() and GLUE.is_dir()), reason=f"the real data is not there: {SHARED}")


@pytest.fixture
def plan(model: str, tmp_path: Path) -> Path:
    """A plan of two seeds, and a model with a fast tokenizer, which knows where words begin."""
    folder = tmp_path / "model"
    BertTokenizerFast.from_pretrained(model).save_pretrained(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((Path(model) / name).read_bytes())
    size = {"train_samples": 8, "test_samples": 6, "max_length": 32, "num_hidden_layers": 1}
    path = tmp_path / "plan.yaml"
    content = {
        "model_name_or_path": str(folder),
        "seeds": [0, 1],
        "heads": dict.fromkeys(benchmark.PROBLEMS, size),
        "training": {"num_train_epochs": 3},
        "methods": {
            "plain": {"long_term_weight": 0, "short_term_weight": 0},
            "lstsd": {"long_term_weight": None, "short_term_weight": None},
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_small_grid(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))  # no process has to start
    results = tmp_path / "results.jsonl"
    command = [str(plan), "--data_dir", str(DATA), "--glue_dir", str(GLUE), "--results", str(results)]
    benchmark.main(command)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 2 * 2 * 4
    assert all(set(benchmark.METRICS[line["head"]]) <= set(line) for line in lines)
    weights = {(line["method"], line["head"]): line["settings"]["long_term_weight"] for line in lines}
    defaults = {"entities": 0.2, "speech": 0.2, "spans": 0.2, "language": 0.1}
    assert weights == {("plain", head): 0 for head in defaults} | {("lstsd", h): w for h, w in defaults.items()}
    by_run = {(line["head"], line["method"], line["seed"]): line for line in lines}
    for head in benchmark.PROBLEMS:  # the rows depend on the seed, not on the method
        assert by_run[head, "plain", 0]["train_samples"] == by_run[head, "lstsd", 0]["train_samples"] > 0
    monkeypatch.setattr(benchmark, "train", lambda *_, **__: pytest.fail("a finished run was done again"))
    benchmark.main(command)
    capsys.readouterr()
    results.write_text(
        "".join(json.dumps(line) + "\n" for line in lines if line["seed"] == 0 or line["method"] == "plain")
    )
    benchmark.main([str(plan), "--report", str(results)])
    table = capsys.readouterr().out
    assert "4 runs are missing." in table
    assert table.count("(2 seeds)") == sum(map(len, benchmark.METRICS.values()))


def test_sentences_are_read_from_both_formats():
    words, tags = benchmark.read_sentences(DATA / "wnut17-train.conll")[0]
    assert (words[0], tags[0], len(words)) == ("@paulwalk", "O", len(tags))
    assert len(benchmark.read_sentences(DATA / "wnut17-train.conll")) == 3394
    universal = benchmark.read_sentences(DATA / "ewt-dev.conllu")
    assert len(universal) == 2001
    assert len({tag for _, tags in universal for tag in tags}) == 17


def test_the_meter_is_compared_with_the_tokens_of_the_test_rows():
    speech = {"head": "speech", "honest_accuracy": 0.9, "honest_accuracy_error": 0.05}
    lines = [
        speech | {"accuracy": 0.92},
        speech | {"accuracy": 0.7},
        {"head": "spans", "honest_accuracy": 0.5, "honest_accuracy_error": 0.1, "places": 0.5},
        {"head": "entities", "accuracy": 0.9},  # from before the line had the estimate
    ]
    (found,) = benchmark.meter_table(lines)
    assert [row.split(" | ") for row in found.splitlines()[2:]] == [
        ["| speech", "2", "90.0", "81.0", "11.0", "+9.0", "5.0", "50% |"],
        ["| spans", "1", "50.0", "50.0", "0.0", "+0.0", "10.0", "100% |"],
    ]
    assert benchmark.meter_table(lines[3:]) == []
