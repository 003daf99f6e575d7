"""The estimate of how many labels are wrong, on stores made by hand, and what uses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstsd_hf import LogitsStore, clean, read_history, write_report
from lstsd_hf.method import dynamics
from lstsd_hf.report.history import open_run
from lstsd_hf.report.measures import measure

SAMPLES, CLASSES = 1000, 3


def run_of(
    folder: Path, wrong: int, epochs: Any = 6, learnt: Any = (), samples: int = SAMPLES, seen: Any = slice(None)
) -> Path:
    """A run whose model predicts the true class; the first `wrong` labels are others, and some are `learnt` by heart.

    Args:
        learnt: For each epoch, the share of the wrong labels that the model has learnt by heart.
        seen: Which samples the run has predictions of.
    """
    true = np.arange(samples) % CLASSES
    given = np.where(np.arange(samples) < wrong, (true + 1) % CLASSES, true)
    folder.mkdir(exist_ok=True)
    store = LogitsStore.create(folder / "_logits", samples, (CLASSES,), "float32", "test")
    store.write_labels(given)
    order = np.random.default_rng(0).permutation(samples)
    sureness = 1 + order / samples  # no two predictions are equally sure
    for epoch in range(epochs) if isinstance(epochs, int) else epochs:
        heart = learnt[epoch] if epoch < len(learnt) else 0
        predicted = np.where(order % 100 < 100 * heart, given, true)
        store.record(epoch, np.arange(samples)[seen], (np.eye(CLASSES)[predicted] * sureness[:, None])[seen])
        store.seal(epoch)
    return folder


def looking_wrong(run: Path) -> int:
    return sum(read_history(run)["looks_wrong"])


@pytest.mark.parametrize("wrong", [0, 50, 100, 400])
def test_as_many_labels_look_wrong_as_the_surest_predictions_are_against(tmp_path, wrong):
    run = run_of(tmp_path, wrong)
    estimated = measure(open_run(run, None)).wrong_labels
    # The surest fifth is a draw of 200 without replacement.
    error = 3 * np.sqrt(wrong / SAMPLES * (1 - wrong / SAMPLES) / 200 * 0.8) * SAMPLES
    assert abs(estimated - wrong) <= error
    assert looking_wrong(run) == estimated
    worst = [row["sample_id"] for row in read_history(run) if row["looks_wrong"]]
    assert sum(i < wrong for i in worst) == min(estimated, wrong)


def test_later_epochs_that_know_wrong_labels_by_heart_do_not_count(tmp_path):
    early = measure(open_run(run_of(tmp_path / "a", 200, learnt=(0, 0, 0)), None)).wrong_labels
    late = measure(open_run(run_of(tmp_path / "b", 200, learnt=(0, 0, 0, 0.9, 0.9, 0.9)), None)).wrong_labels
    some = measure(open_run(run_of(tmp_path / "c", 200, learnt=(0, 0, 0.5)), None)).wrong_labels
    assert early == late
    assert some == pytest.approx(early * np.sqrt(0.5), rel=0.2)


def test_samples_that_the_run_never_saw_add_no_wrong_labels(tmp_path):
    """As with a sampler that takes a part of the training set."""
    whole = measure(open_run(run_of(tmp_path / "whole", 200), None)).wrong_labels
    half = run_of(tmp_path / "half", 200, seen=slice(0, None, 2))
    assert measure(open_run(half, None)).wrong_labels == pytest.approx(whole / 2, rel=0.3)
    assert list(read_history(half)["looks_wrong"]).count(True) == measure(open_run(half, None)).wrong_labels


@pytest.mark.parametrize(("epochs", "counted"), [(2, 1), (4, 1), (5, 2), (9, 2)])
def test_the_epochs_that_it_is_counted_from(epochs, counted):
    assert dynamics.counted_epochs(range(epochs)) == (list(range(1, epochs)), counted)
    assert dynamics.counted_epochs([0, 1, 2, 5, 6]) == ([1, 2], 2)
    for without in ([], [0], [epochs + 8, epochs + 9], [0, 2, 3]):
        assert dynamics.counted_epochs(without)[0] == []


def test_without_these_epochs_or_of_few_samples_the_score_alone_says(tmp_path):
    for folder, options in {"few": {"samples": 499}, "late": {"epochs": [4, 5]}, "one": {"epochs": 1}}.items():
        run = run_of(tmp_path / folder, 100, **options)
        assert measure(open_run(run, None)).wrong_labels is None
        assert looking_wrong(run) == 100


def test_the_page_and_clean_say_how_many(tmp_path):
    run = run_of(tmp_path / "run", 100)
    count = looking_wrong(run)
    page = write_report(run).read_text(encoding="utf-8")
    assert f"About {count} of 1,000 labels look wrong ({count / 10:.0f}%)" in page
    assert "it was off by 4 percentage points on average, and by 26 at the most" in page
    names = [str(label) for label in read_history(run)["label"]]
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{name}\n" for i, name in enumerate(names)))
    done = clean(run, path, tmp_path / "clean.csv", drop=True)
    assert done.dropped == count
    assert f"the {count} highest, because about so many labels are wrong" in str(done)


def test_the_surest_fifth():
    top = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, np.nan])
    predicted = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, -1])
    labels = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0, 1])
    assert dynamics.verdict(top, predicted, labels)[1:] == (1, 0.5, 0.5)
    assert dynamics.wrong_share([0.2, 0.05, 0.9], 2) == pytest.approx(0.1)
    assert dynamics.wrong_share([0.2, 0.0], 2) == 0
    assert dynamics.wrong_share([np.nan, 0.2, np.nan, 0.05], 2) == pytest.approx(0.1)
    assert dynamics.wrong_share([np.nan, 0.2], 2) == pytest.approx(0.2)
    assert np.isnan(dynamics.wrong_share([np.nan], 1))


def test_predictions_that_are_not_sure_contradict_no_label():
    """A model that has only begun to learn 50 classes: its surest predictions have a probability of a tenth."""
    labels = np.arange(1000) % 50
    predicted = np.where(np.arange(1000) < 400, (labels + 1) % 50, labels)
    assert np.isnan(dynamics.verdict(np.linspace(0.5, 0.1, 1000), predicted, labels).contradicted)
    assert dynamics.verdict(np.linspace(0.8, 0.1, 1000), predicted, labels).contradicted == 1


def test_the_first_epochs_that_judge_count(tmp_path):
    """The model learns 50 classes late: for two epochs it is sure of nothing."""
    true = np.arange(2000) % 50
    given = np.where(np.arange(2000) < 200, (true + 1) % 50, true)
    store = LogitsStore.create(tmp_path / "_logits", 2000, (50,), "float32", "test")
    store.write_labels(given)
    order = np.random.default_rng(0).permutation(2000) / 2000
    for epoch in range(6):
        predicted = true if epoch > 2 else np.zeros(2000, int)
        height = (6 if epoch > 2 else 1) + order[:, None]
        store.record(epoch, np.arange(2000), np.eye(50)[predicted] * height)
        store.seal(epoch)
    measures = measure(open_run(tmp_path, None))
    assert measures.wrong_labels == pytest.approx(200, rel=0.3)
    assert measures.has_learnt
    assert measures.samples["looks_wrong"][:200].sum() == min(measures.wrong_labels, 200)


def test_a_label_of_a_class_that_is_hardly_ever_predicted_does_not_count():
    """All labels are right; the model predicts class 0 for the rare class 2, and is as sure of it as of the others."""
    labels = np.repeat([0, 1, 2], [500, 400, 100])
    predicted = np.where(labels == 2, 0, labels)
    top = 1 - np.random.default_rng(0).random(1000) / 10
    found = dynamics.verdict(top, predicted, labels)
    assert not found.known[900:].any()
    assert found[1:] == (0.5, 0, 0)
    predicted[900:910] = 2  # a tenth of them
    found = dynamics.verdict(top, predicted, labels)
    assert found.known.all()
    assert found.reach == 1
    assert found.contradicted == found.wrong == pytest.approx(0.09, abs=0.05)
    found = dynamics.verdict(top, np.zeros(1000, int), labels)  # it knows one class alone
    assert found.reach == 0
    assert np.isnan(found.wrong)


def test_wrong_labels_of_classes_that_are_not_known_are_reckoned_with():
    """The model knows 3 of 5 classes, and a third of all labels are wrong."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 100_000)
    labels = np.where(rng.random(100_000) < 1 / 3, (true + rng.integers(1, 5, 100_000)) % 5, true)
    predicted = np.where(true < 3, true, 0)
    top = np.where(true < 3, 0.9, 0.6) + rng.random(100_000) / 100  # sure of what it knows
    found = dynamics.verdict(top, predicted, labels)
    assert found.reach == 1 / 2
    assert found.wrong == pytest.approx(1 / 3, abs=0.02)
    predicted = np.where(true < 2, true, 0)  # with fewer, a few contradictions would stand for many wrong labels
    found = dynamics.verdict(top, predicted, labels)
    assert found.reach == 1 / 4
    assert np.isnan(found.wrong)


def partly_learnt(folder: Path, wrong_share: float) -> tuple[np.ndarray, np.ndarray]:
    """A run of a model that has learnt the 30 frequent ones of 50 classes, some labels wrong, evenly over the classes.

    Returns:
        The given and the true labels, (4000,).
    """
    rng = np.random.default_rng(0)
    true = np.concatenate([rng.integers(0, 30, 3000), rng.integers(30, 50, 1000)])
    given = np.where(rng.random(4000) < wrong_share, (true + rng.integers(1, 50, 4000)) % 50, true)
    predicted, height = np.where(true < 30, true, 0), np.where(true < 30, 8, 7)
    store = LogitsStore.create(folder / "_logits", 4000, (50,), "float32", "test")
    store.write_labels(given)
    for epoch in range(6):
        store.record(epoch, np.arange(4000), np.eye(50)[predicted] * (height + rng.random(4000))[:, None])
        store.seal(epoch)
    return given, true


def test_right_labels_of_classes_that_the_model_has_not_learnt_do_not_look_wrong(tmp_path):
    partly_learnt(tmp_path, 0)
    assert looking_wrong(tmp_path) == 0
    assert min(read_history(tmp_path)["noise_score"][3000:]) > 0.9


def test_wrong_labels_of_classes_that_the_model_has_not_learnt_look_wrong(tmp_path):
    given, true = partly_learnt(tmp_path, 0.2)
    flagged, wrong, rare = np.array(read_history(tmp_path)["looks_wrong"]), given != true, given >= 30
    assert flagged.sum() == pytest.approx(wrong.sum(), rel=0.3)
    assert wrong[flagged].mean() > 0.7
    # Of a class that is not learnt, as many as of any other.
    assert (flagged & wrong & rare).sum() > 0.4 * (wrong & rare).sum()
    assert np.bincount(given[flagged & rare], minlength=50).max() <= round(flagged.sum() / 49)
    said = f"{rare.sum():,} labels are of classes that the model hardly ever predicts, so it says little of them; "
    said += f"{(flagged & rare).sum():,} of these look wrong"
    assert f"{said}." in write_report(tmp_path).read_text(encoding="utf-8")
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(given))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    done = clean(tmp_path, tmp_path / "train.csv", tmp_path / "clean.csv", drop=True)
    assert done.dropped == flagged.sum()
    assert said in str(done)


def test_the_highest_noise_scores_look_wrong_but_few_of_a_class_that_is_not_known():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, np.nan])
    labels = np.array([2, 2, 2, 0, 1, 0, 1, 2])
    last = dynamics.Verdict(labels != 2, 0.5)
    # 3 of 7 are wrong, so 3 / 2 of each class.
    assert np.flatnonzero(dynamics.worst(scores, labels, last, 3 / 7)).tolist() == [0, 1, 3]
    assert np.flatnonzero(dynamics.worst(scores, labels, last, 1 / 7)).tolist() == [3]
    assert np.flatnonzero(dynamics.worst(scores, labels, last, 1)).tolist() == list(range(7))
    assert not dynamics.worst(scores, labels, last, np.nan).any()
    everything = dynamics.Verdict(np.full(8, True), 1)
    assert np.flatnonzero(dynamics.worst(scores, labels, everything, 3 / 7)).tolist() == [0, 1, 2]


def test_a_model_that_predicts_one_class_judges_no_label(tmp_path):
    store = LogitsStore.create(tmp_path / "_logits", SAMPLES, (2,), "float32", "test")
    store.write_labels(np.arange(SAMPLES) % 3 // 2)
    for epoch in range(3):
        store.record(epoch, np.arange(SAMPLES), np.tile([1.0, 0.0], (SAMPLES, 1)))
        store.seal(epoch)
    measures = measure(open_run(tmp_path, None))
    assert (measures.wrong_labels, measures.has_learnt) == (None, False)
    assert looking_wrong(tmp_path) == 0


def test_a_model_that_learnt_nothing_judges_no_label(tmp_path):
    rng = np.random.default_rng(0)
    store = LogitsStore.create(tmp_path / "_logits", SAMPLES, (2,), "float32", "test")
    labels = rng.integers(0, 2, SAMPLES)
    store.write_labels(labels)
    for epoch in range(3):
        store.record(epoch, np.arange(SAMPLES), rng.normal(0, 0.1, (SAMPLES, 2)))
        store.seal(epoch)
    measures = measure(open_run(tmp_path, None))
    assert (measures.wrong_labels, measures.has_learnt) == (None, False)
    assert looking_wrong(tmp_path) == 0
    assert "The model learnt too little to judge labels" in write_report(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels))
    with pytest.raises(ValueError, match="learnt too little"):
        clean(tmp_path, tmp_path / "train.csv", tmp_path / "clean.csv", drop=True)
