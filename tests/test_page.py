"""What the pages of the report say and hold. How they behave in a browser: test_browser.py and test_review.py."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from lstsd_hf import LogitsStore, write_report
from lstsd_hf.report import page_columns, summary
from lstsd_hf.report.compare import write_comparison

NAN = np.nan


def store_of(folder: Path, logits: Any, labels: Any, epochs: Any = None) -> Path:
    """A run folder with a store of (E, N, C) logits."""
    logits = np.asarray(logits, np.float32)
    store = LogitsStore.create(folder / "_logits", logits.shape[1], logits.shape[2:], "float32", "test")
    store.write_labels(np.asarray(labels))
    for epoch, predicted in zip(epochs or range(len(logits)), logits, strict=True):
        store.record(epoch, np.arange(len(predicted)), predicted)
        store.seal(epoch)
    return folder


def data_of(page: Path) -> dict[str, Any]:
    """The page's data, unpacked as its script does."""
    packed = re.search(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def words_of(page: Path, tag: str) -> str:
    """The text of the first element with this tag."""
    found = re.search(f"<{tag}[^>]*>(.*?)</{tag.split()[0]}>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None, tag
    return " ".join(found[1].split())


# ---- what it says first


@pytest.mark.parametrize(
    ("wrong", "title"),
    [(0, "None of 4 labels looks wrong"), (1, "1 of 4 labels looks wrong"), (3, "3 of 4 labels look wrong")],
)
def test_how_many_labels_look_wrong(tmp_path: Path, wrong: int, title: str) -> None:
    logits = np.array([[[0, 3.0]] * wrong + [[3.0, 0]] * (4 - wrong) + [[NAN, NAN]]] * 2)
    page = write_report(store_of(tmp_path, logits, [0] * 5))
    assert words_of(page, "h1") == title
    assert "on average over 2 epochs" in words_of(page, 'p class="lead"')


@pytest.mark.parametrize(
    ("labels", "predicted", "learnt"),
    [
        ([0, 1, 0, 1], [0, 0, 0, 0], False),
        ([0, 0, 0, 1], [1, 0, 0, 0], False),
        ([0, 1, 0, 1], [0, 1, 0, 0], True),
        ([1, 1, 1, 1], [1, 0, 0, 0], True),  # with one class among the labels there is nothing to compare with
    ],
)
def test_a_model_that_guesses_is_not_to_be_believed(
    tmp_path: Path, labels: list[int], predicted: list[int], learnt: bool
) -> None:
    page = write_report(store_of(tmp_path, 3 * np.eye(2)[[predicted]], labels))
    assert ("so it has learnt too little to judge them" in words_of(page, 'p class="lead"')) is not learnt


def test_how_many_scores_look_wrong(tmp_path: Path) -> None:
    labels = np.array([0, 1, 0, 1], np.float32)
    page = write_report(store_of(tmp_path, (labels + np.array([0, 0.1, 2, 0]))[None, :, None], labels))
    assert words_of(page, "h1") == "1 of 4 scores looks wrong"
    assert "more than the standard deviation of all scores, in its one epoch" in words_of(page, 'p class="lead"')


# ---- what it suggests


def test_the_history_suggests_not_the_last_epoch(tmp_path: Path) -> None:
    """The last epoch has learnt the wrong label by heart; the epochs before it predict the right one."""
    history = [[[0, 4.0, 0]], [[0, 3.0, 1]], [[3.0, 1, 0]]]
    rows = data_of(write_report(store_of(tmp_path, history, [0])))["rows"]
    assert (rows["suggested"], rows["predicted"][-1], rows["flagged"]) == ([1], [0], [1])
    probability = np.exp(history) / np.exp(history).sum(axis=2, keepdims=True)
    assert rows["suggestion"] == np.round(100 * probability[:, :, 1]).astype(int).tolist()
    assert rows["given"] == np.round(100 * probability[:, :, 0]).astype(int).tolist()


def test_of_two_classes_a_kept_mean_of_all_epochs_suggests(tmp_path: Path) -> None:
    """The store has only the last epoch, which agrees with every label."""
    folder = store_of(tmp_path, [[[3.0, 0], [0, 3.0], [3.0, 0]]], [0, 1, 0], [3])
    LogitsStore.open(folder / "_logits").write_statistic("margin", 3, np.array([[-0.5, 4], [-0.1, 4], [0.5, 4]], "f4"))
    page = write_report(folder)
    rows = data_of(page)["rows"]
    assert dict(zip(rows["id"], rows["suggested"], strict=True)) == {0: 1, 1: 0, 2: 0}
    assert words_of(page, "h1") == "2 of 3 labels look wrong"
    assert "on average over 4 epochs" in words_of(page, 'p class="lead"')


def test_the_matrix_counts_given_and_suggested_labels() -> None:
    given, suggested = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 0, 2])
    counted = summary.matrix(given, suggested, 3)
    assert counted.classes == [0, 1, 2]
    assert counted.counts == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert (counted.largest, counted.is_part) == (1, False)


def test_the_matrix_of_many_classes_has_those_that_are_mistaken_most() -> None:
    given = np.array([30] * 5 + [7] * 2 + [0])
    suggested = np.array([40] * 5 + [8] * 2 + [0])
    counted = summary.matrix(given, suggested, 50)
    assert len(counted.classes) == summary.MATRIX_CLASSES
    assert {7, 8, 30, 40} <= set(counted.classes)
    assert counted.is_part
    assert counted.counts[counted.classes.index(30)][counted.classes.index(40)] == counted.largest == 5


# ---- memory


def logged(folder: Path, *entries: dict[str, float]) -> Path:
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(entries)}))
    return write_report(folder)


def test_memory_is_told_where_the_log_has_it(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 2, 2)), [0, 1])
    assert 'id="plot-memory"' not in logged(folder, {"epoch": 1.0, "loss": 1.0}).read_text(encoding="utf-8")
    first = {"epoch": 1.0, "honest_accuracy": 0.6, "memorised": 0.05}
    last = {"epoch": 2.0, "honest_accuracy": 0.716, "memorised": 0.194}
    page = logged(folder, first, last)
    sentence = "Of the 91 % that it gets right, 72 % it can do and 19 % it has by heart."
    assert words_of(page, 'p class="sentence"') == sentence
    traces = data_of(page)["figures"]["memory"]["data"]
    assert len(traces) == 2  # no error, no band
    page = logged(
        folder,
        first | {"honest_accuracy_error": 0.01},
        last | {"honest_accuracy_error": 0.02, "memorised_error": 0.01},
    )
    assert words_of(page, 'p class="sentence"') == sentence[:-1] + " (each ± 4 points, 95 % interval)."
    assert len(data_of(page)["figures"]["memory"]["data"]) == 4
    page = logged(folder, first | {"memorised": -0.02})
    assert words_of(page, 'p class="sentence"') == "Of the 58 % that it gets right, it has none by heart."


def test_the_loss_of_the_honest_past_is_a_curve_of_its_own(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 2, 2)), [0, 1])
    page = logged(folder, {"epoch": 1.0, "loss": 1.0}, {"epoch": 2.0, "loss": 0.8, "honest_past_loss": 0.3})
    curves = {line["name"]: line["x"] for line in data_of(page)["figures"]["losses"]["data"]}
    assert curves == {"all together": [1.0, 2.0], "label, and past without memory": [2.0]}


def test_of_a_regression_memory_is_what_its_own_samples_take_off_the_error(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 3, 1)), [0.1, 0.5, 0.9])
    first = {"epoch": 1.0, "honest_loss": 0.9, "memorised": 0.1, "honest_loss_error": 0.1, "memorised_error": 0.05}
    last = {"epoch": 2.0, "honest_loss": 0.61, "memorised": 0.25, "honest_loss_error": 0.05, "memorised_error": 0.01}
    page = logged(folder, first, last)
    assert words_of(page, 'p class="sentence"') == (
        "The mean squared error is 0.36 on the training samples, and would be 0.61 on new ones (± 0.098, 95 % "
        "interval): knowing samples by heart lowers it by 0.25."
    )
    lines = data_of(page)["figures"]["memory"]["data"]
    heights = [np.frombuffer(base64.b64decode(line["y"]["bdata"]), line["y"]["dtype"]) for line in lines[:2]]
    np.testing.assert_allclose(heights, [[0.8, 0.36], [0.9, 0.61]])
    assert len(lines) == 4  # with the two edges of the band
    page = logged(folder, first, last | {"memorised": 0.0})
    assert words_of(page, 'p class="sentence"').endswith(
        "is 0.61 on the training samples, and would be no higher on new ones (± 0.098, 95 % interval): the model "
        "knows nothing by heart."
    )


# ---- ids, numbers


def test_ids_that_a_browser_cannot_tell_apart_are_texts() -> None:
    assert page_columns.identifiers(np.array([3, 2**53 - 1])) == [3, 2**53 - 1]
    assert page_columns.identifiers(np.array([3, 2**53, 2**53 + 1])) == ["3", str(2**53), str(2**53 + 1)]


def test_the_browser_keeps_decisions_apart_by_run_samples_and_labels(tmp_path: Path) -> None:
    logits = np.zeros((1, 3, 2))
    keys = [
        data_of(write_report(store_of(tmp_path / name, values, labels)))["key"]
        for name, values, labels in (
            ("a/out", logits, [0, 1, 0]),
            ("b/out", logits + 1, [0, 1, 0]),  # the same run in another place, with other predictions
            ("a/other", logits, [0, 1, 0]),
            ("c/out", logits, [0, 1, 1]),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


# ---- two runs


def two_runs(folder: Path) -> tuple[Path, Path]:
    """A has epochs 0 and 1 of samples 0 to 3, B of samples 0 to 4; B has another label for sample 3."""
    given = np.eye(2)[[0, 0, 1, 1]]
    a = store_of(folder / "a", [given, given * [[1], [-1], [1], [1]]], [0, 0, 1, 1])
    other = np.eye(2)[[0, 0, 1, 0, 0]]
    b = store_of(folder / "b", [other, other * [[1], [1], [-1], [1], [1]]], [0, 0, 1, 0, 0])
    return a, b


def test_two_runs_are_judged_by_the_labels_of_the_second(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    page = write_comparison(a, b, datasets.Dataset.from_dict({"sample_id": range(5), "text": list("vwxyz")}))
    assert page == b / "_report" / "comparison.html"
    rows = data_of(page)["rows"]
    at = {i: position for position, i in enumerate(rows["id"])}
    assert sorted(at) == [0, 1, 2, 3]
    assert [rows["right_a"][at[i]] for i in range(4)] == [1, 0, 1, 0]
    assert [rows["right_b"][at[i]] for i in range(4)] == [1, 1, 0, 1]
    assert [rows["label"][at[i]] for i in range(4)] == [0, 0, 1, 0]
    assert rows["gain"][at[3]] == pytest.approx(2 / (1 + np.exp(-1)) - 1, abs=1e-4)
    assert np.abs(rows["gain"]).tolist() == sorted(np.abs(rows["gain"]), reverse=True)
    assert words_of(page, "h1") == "B is better at 2 of 4 samples, and worse at 1"
    text = page.read_text(encoding="utf-8")
    assert "Samples with another label in B than in A: 1." in text
    assert "Samples of B that are not here, because not both runs predicted them: 1." in text
    assert "Samples of A that are not here" not in text
    assert [len(history) for history in rows["history"]] == [2, 2]


def test_runs_on_other_texts_are_said_to_be(tmp_path: Path) -> None:
    """As after `lstsd clean --drop` on a file without ids: the row numbers after a dropped row are other samples'."""
    a, b = two_runs(tmp_path)
    for texts, are_others in (({"text": "1", "more": "0"}, False), ({"text": "2"}, True), ({"words": "2"}, False)):
        LogitsStore.open(a / "_logits").write_texts({"text": "1"})
        LogitsStore.open(b / "_logits").write_texts(texts)
        page = write_comparison(a, b).read_text(encoding="utf-8")
        assert ("samples here may be of different texts" in page) is are_others


def test_two_regressions(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2], np.float32)
    a = store_of(tmp_path / "a", labels[None, :, None] + np.array([[1], [0.5], [0.25]]), labels)
    b = store_of(tmp_path / "b", labels[None, :, None] + np.array([[0], [0.75], [0.25]]), labels)
    page = write_comparison(a, b)
    rows = data_of(page)["rows"]
    assert dict(zip(rows["id"], rows["gain"], strict=True)) == {0: 1, 1: -0.25, 2: 0}
    assert words_of(page, "h1") == "B is better at 1 of 3 samples, and worse at 1"


def test_runs_of_other_epochs_are_said_to_be(tmp_path: Path) -> None:
    logits = np.zeros((4, 2, 2))
    a, b = store_of(tmp_path / "a", logits, [0, 1]), store_of(tmp_path / "b", logits[:2], [0, 1], [1, 5])
    assert "A has the epochs 0 to 3, B 1, 5." in write_comparison(a, b).read_text(encoding="utf-8")


def test_evaluations_of_both_runs_are_shown(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    for run, accuracy in zip(runs, (0.5, 0.75), strict=True):
        log = [{"epoch": 1.0, "eval_accuracy": accuracy, "eval_runtime": 3.0}]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    figures = data_of(write_comparison(*runs))["figures"]
    assert set(figures) == {"map", "agreement", "eval_accuracy"}
    assert [trace["y"] for trace in figures["eval_accuracy"]["data"]] == [[0.5], [0.75]]


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    two, three = np.zeros((1, 2, 2)), np.zeros((1, 2, 3))
    a = store_of(tmp_path / "a", two, [0, 1])
    other_task = store_of(tmp_path / "b", three, [0, 1])
    with pytest.raises(ValueError, match="a predicts 2 classes, b 3 classes: expected two runs of one task"):
        write_comparison(a, other_task)
    scores = store_of(tmp_path / "c", two[:, :, :1], np.array([0, 1], np.float32))
    with pytest.raises(ValueError, match="a predicts 2 classes, c scores"):
        write_comparison(a, scores)
    others = store_of(tmp_path / "d", two, [-100, 1])
    only_first = store_of(tmp_path / "e", two, [0, -100])
    with pytest.raises(ValueError, match="e and d have no sample id in common"):
        write_comparison(only_first, others)
    unseen = store_of(tmp_path / "f", np.array([[[0, 0.0], [NAN, NAN]]]), [0, 1])
    with pytest.raises(ValueError, match="f and d have no sample that the last epochs of both have predicted"):
        write_comparison(unseen, others)
    assert not list(tmp_path.rglob("comparison.html"))
