"""GLUE's metrics and its submission format."""

import math
from pathlib import Path

import numpy as np
import pytest

from lstsd_hf.glue.tasks import TASKS, GlueMetric, correlations, write_predictions


def score(config_name: str, predictions: list[float], references: list[float]) -> dict[str, float]:
    metric = GlueMetric(config_name=config_name, keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("name", ["sst2", "mnli", "qnli", "rte", "wnli", "classification"])
def test_accuracy(name: str) -> None:
    assert score(name, [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 0.75}


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_accuracy_and_f1_of_class_1(name: str) -> None:
    # 2 true positives, 1 false positive, 1 false negative: F1 = 4 / (4 + 1 + 1)
    assert score(name, [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == {"accuracy": 0.6, "f1": pytest.approx(2 / 3)}
    assert score(name, [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}


def test_matthews_correlation() -> None:
    # tp 2, tn 1, fp 1, fn 1: (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2) = 1 / 6
    found = score("cola", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert found == {"matthews_correlation": pytest.approx(1 / 6)}
    assert score("cola", [1, 1], [0, 1]) == {"matthews_correlation": 0.0}


@pytest.mark.parametrize("name", ["stsb", "regression"])
def test_correlations(name: str) -> None:
    # Deviations (-1, 0, 1) and (-4/3, -1/3, 5/3): 3 / sqrt(2 * 42/9); the ranks agree.
    found = score(name, [1.0, 2.0, 3.0], [0.0, 1.0, 3.0])
    assert found == {"pearson": pytest.approx(3 / math.sqrt(28 / 3)), "spearmanr": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([2.0, 2.0, 2.0], [0.0, 1.0, 3.0]), ([0.0, 1.0], [3.0, 3.0]), ([1.0], [1.0]), ([math.nan, 1.0], [0.0, 1.0])],
)
def test_undefined_correlations_are_zero(predictions: list[float], references: list[float]) -> None:
    assert correlations(np.array(predictions), np.array(references)) == {"pearson": 0.0, "spearmanr": 0.0}


# --- submissions ---


def submission(tmp_path: Path, task_name: str | None, labels: tuple[str, ...], found: list[float]) -> bytes:
    path = tmp_path / "out.tsv"
    write_predictions(path, labels, task_name, list(range(5, 5 + len(found))), np.array(found))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "wnli"])
def test_submissions_by_number(tmp_path: Path, name: str) -> None:
    assert submission(tmp_path, name, TASKS[name].labels, [1, 0]) == b"index\tprediction\n5\t1\n6\t0\n"


def test_submissions_by_name(tmp_path: Path) -> None:
    expected = b"index\tprediction\n5\tnot_entailment\n6\tentailment\n"
    assert submission(tmp_path, "rte", TASKS["rte"].labels, [1, 0]) == expected
    assert submission(tmp_path, "qnli", TASKS["qnli"].labels, [1, 0]) == expected
    expected = b"index\tprediction\n5\tcontradiction\n6\tentailment\n7\tneutral\n"
    assert submission(tmp_path, "mnli", TASKS["mnli"].labels, [2, 0, 1]) == expected
    assert submission(tmp_path, None, ("yes", "n\u00e9"), [1]) == "index\tprediction\n5\tn\u00e9\n".encode()


def test_a_name_with_tabs_or_line_ends_stays_one_cell(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a.tsv", ("a\tb", 'c "d"\n', 'e "f"'), None, [0, 1, 2], np.array([0, 1, 2]))
    assert (tmp_path / "a.tsv").read_text() == 'index\tprediction\n0\t"a\tb"\n1\t"c ""d""\n"\n2\te "f"\n'


def test_submissions_of_scores(tmp_path: Path) -> None:
    expected = b"index\tprediction\n5\t0.000\n6\t3.142\n7\t5.000\n"
    assert submission(tmp_path, "stsb", (), [-0.2, 3.14159, 5.1]) == expected
    assert submission(tmp_path, None, (), [-0.25, 123456.75]) == b"index\tprediction\n5\t-0.25\n6\t123457\n"
