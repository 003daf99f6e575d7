"""Several labels for each sample: which of them look wrong, the page, decisions about them, and the cleaned lists."""

import base64
import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleanlab.multilabel_classification import get_label_quality_scores
from cleanlab.multilabel_classification.filter import find_label_issues
from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
from datasets import Dataset
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from lstsd_hf import LogitsStore, clean, read_history, write_report

NAMES = ("short", "funny", "=rude")
GIVEN = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]]
# By the model, "funny" is missing in sample 0, and "=rude" (most of all) and "funny" were added to sample 1.
PREDICTED = [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]]
NAMES_OF = [[name for name, holds in zip(NAMES, row, strict=True) if holds] for row in GIVEN]
WRONG = [(1, 2), (0, 1), (1, 1)]  # sample and label, the most suspicious first


def run_of(folder: Path, labels: Any, logits: Any) -> Path:
    """A run with (E, N, C) logits, whose ids do not begin at 0: they are 10, 11, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, ids = np.asarray(labels, np.float32), np.arange(len(labels)) + 10
    store = LogitsStore.create(folder / "_logits", 10 + len(labels), labels.shape[1:], "float32", "test")
    store.write_labels(labels, ids)
    for epoch, values in enumerate(np.asarray(logits, np.float32)):
        store.record(epoch, ids, values)
        store.seal(epoch)
    names = {"id2label": dict(enumerate(NAMES)), "problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    logits = (np.array(PREDICTED) * 2.0 - 1) * 2
    logits[0, 1], logits[1, 1] = 1.5, -1
    return run_of(tmp_path / "out", GIVEN, [logits, logits * 1.5])


def data_set(**more: Any) -> Dataset:
    ids = list(range(10, 10 + len(GIVEN)))
    return Dataset.from_dict({"sample_id": ids, "text": [f"text {i}" for i in ids], "labels": GIVEN, **more})


def data_of(page: Path) -> dict[str, Any]:
    """The page's data, unpacked as its script does."""
    packed = re.search(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


# ---- scores


def test_the_ranking_is_about_cleanlabs_and_finds_more_of_what_is_learnt_by_heart(tmp_path):
    """Uses a made-up history whose model knows some wrong labels by heart in the end."""
    rng = np.random.default_rng(0)
    shape = (400, 3)
    true = rng.random(shape) < [0.5, 0.3, 0.1]
    wrong = rng.random(shape) < 0.08
    given = true ^ wrong
    signs, heart = np.where(true, 1, -1), np.where(given, 1, -1)
    known = np.array([0, 0.3, 0.45, 0.6])[:, None, None]
    history = 2 * ((1 - known) * signs + known * heart) + rng.normal(0, 1, (4, *shape))
    found = read_history(run_of(tmp_path / "out", given, history))
    scores = np.array(found["noise_score_by_label"])
    probabilities = 1 / (1 + np.exp(-history))
    lists = [np.flatnonzero(row).tolist() for row in given]

    # From the same mean over epochs, cleanlab ranks labels the same, and samples nearly the same.
    theirs = 1 - get_label_quality_scores_per_class(lists, probabilities.mean(axis=0))
    assert spearmanr(scores.ravel(), theirs.ravel()).statistic > 0.999
    by_sample = 1 - get_label_quality_scores(lists, probabilities.mean(axis=0))
    assert spearmanr(found["noise_score"], by_sample).statistic > 0.95
    # Every issue that cleanlab finds looks wrong here too; cleanlab is more careful.
    issues = find_label_issues(lists, probabilities.mean(axis=0))
    assert issues.any()
    assert not (issues & ~np.array(found["looks_wrong"])).any()

    # From the last epoch alone, its ranking agrees less with ours, and less with the truth.
    last = 1 - get_label_quality_scores_per_class(lists, probabilities[-1])
    assert 0.5 < spearmanr(scores.ravel(), last.ravel()).statistic < 0.95
    ours, others = (average_precision_score(wrong.ravel(), of.ravel()) for of in (scores, last))
    assert ours > others + 0.1


# ---- the page


def test_the_page_is_about_labels(run):
    page = write_report(run, data_set(), "text")
    text = page.read_text(encoding="utf-8")
    assert "<h1>3 of 15 labels look wrong</h1>" in text
    assert "Each of 5 samples has 3 labels, a yes or no each. 2 added and 1 missing, it seems, in 2 samples" in text
    data = data_of(page)
    rows, names = data["rows"], data["names"]
    places = list(zip(rows["id"], rows["about"], strict=True))
    assert places[:3] == [(10 + sample, label) for sample, label in WRONG]
    assert rows["flagged"] == [1, 1, 1, 0, 0, 0]  # then the worst label of each other sample
    assert {sample for sample, _ in places[3:]} == {12, 13, 14}
    assert [data["looks"][look] for look in rows["look"]] == ["added", "missing", "added", *["right"] * 3]
    assert [data["classes"][given] for given in rows["label"][:3]] == ["yes", "no", "yes"]
    assert rows["text"][:3] == ["text 11", "text 10", "text 11"]
    assert [[names[label] for label in own] for own in rows["own"][:3]] == [NAMES_OF[1], NAMES_OF[0], NAMES_OF[1]]
    probability = 1 / (1 + np.exp(-np.array([1.5, 2.25])))
    assert [epoch[1] for epoch in rows["suggestion"]] == np.round(100 * probability).astype(int).tolist()
    assert rows["noise_score"][1] == pytest.approx(probability.mean(), abs=1e-4)
    assert re.findall(r'aria-label="(1: label [^"]*)"', text) == [
        "1: label funny, looks added",
        "1: label funny, looks missing",
        "1: label =rude, looks added",
    ]


def test_what_lies_beside_the_page(run):
    folder = write_report(run).parent
    labels, probabilities = np.load(folder / "labels.npy"), np.load(folder / "pred_probs.npy")
    assert labels.tolist() == GIVEN
    last = LogitsStore.open(run / "_logits").read(1, np.load(folder / "sample_ids.npy"))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-last)), rtol=1e-5)
    table = pq.read_table(folder / "samples.parquet").to_pydict()
    history = read_history(run)
    assert table == {name: history[name][:] for name in table}
    assert table["suggested_label"] == PREDICTED


def test_labels_without_a_prediction(tmp_path):
    logits = np.where(np.array(PREDICTED) == 1, 2.0, -2.0)[None].repeat(2, axis=0)
    logits[:, 0] = np.nan  # never seen
    logits[1, 1] = np.nan  # not in the last epoch
    page = write_report(run_of(tmp_path / "out", GIVEN, logits))
    text = page.read_text(encoding="utf-8")
    assert "<h1>2 of 12 labels look wrong</h1>" in text
    assert "Samples with a label and no prediction in any epoch: 1." in text
    assert "none in the last one, 1: 1." in text
    assert 10 not in data_of(page)["rows"]["id"]
    assert np.load(page.parent / "sample_ids.npy").tolist() == [12, 13, 14]


def test_the_browser_keeps_decisions_of_a_run_that_goes_on(tmp_path):
    logits = np.where(np.array(PREDICTED) == 1, 2.0, -2.0)
    keys = [
        data_of(write_report(run_of(tmp_path / name / "out", GIVEN, epochs)))["key"]
        for name, epochs in (("a", [logits]), ("b", [logits, -3 * logits]))
    ]
    assert keys[0] == keys[1]


def test_of_no_label_that_looks_wrong(tmp_path):
    page = write_report(run_of(tmp_path / "out", PREDICTED, [np.where(np.array(PREDICTED) == 1, 2, -2)]))
    text = page.read_text(encoding="utf-8")
    assert "<h1>None of 15 labels looks wrong</h1>" in text
    assert "There is no label for which the model found the opposite more probable, in its one epoch." in text


# ---- decisions


def cleaned(run: Path, folder: Path, lines: str, data: Dataset | None = None) -> Any:
    """Follows decisions; returns what was done, and the labels by sample id."""
    (folder / "decisions.csv").write_text(lines)
    (data or data_set()).to_parquet(folder / "train.parquet")
    done = clean(run, folder / "train.parquet", folder / "clean.parquet", decisions=folder / "decisions.csv")
    found = pq.read_table(folder / "clean.parquet").to_pydict()
    return done, dict(zip(found["sample_id"], found["labels"], strict=True))


def test_decisions_keep_and_flip_labels_and_drop_samples(run, tmp_path):
    lines = "sample_id,decision,label,given,suggested,score\n"
    lines += "10,flip,funny,no,yes,0.8\n11,flip,'=rude,yes,no,0.9\n11,keep,funny,yes,no,0.7\n"
    lines += "12,flip,short,no,,\n12,Flip,funny,,,\n13,flip,funny,yes,,\n13,drop,short,yes,,\n14,keep,,,,\n"
    done, labels = cleaned(run, tmp_path, lines)
    assert labels == {10: [1, 1, 0], 11: [0, 1, 0], 12: [1, 1, 0], 14: [0, 1, 0]}
    assert (done.dropped, sum(done.relabelled.values())) == (1, 3)
    assert done.relabelled["none", "short + funny"] == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("10,relabel,funny,no", "line 2: expected keep, flip or drop as decision, found 'relabel'"),
        ("10,flip,,no", "line 2: expected a label's name as label, one of 'short', 'funny', '=rude', found ''"),
        ("10,keep,sad,no", "found 'sad'"),
        ("10,flip,funny,yes", "made where 'funny' was given as 'yes', and sample id 10 has 'no'"),
        ("10,keep,funny,no\n10,flip,funny,no", "line 3: sample id 10 has a decision about 'funny' in line 2 already"),
        (
            "9,keep,funny,no",
            "expected the id of a sample that is in the run and in the data set, such as 10, found '9'",
        ),
    ],
)
def test_decisions_that_cannot_be_followed(run, tmp_path, lines, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cleaned(run, tmp_path, f"sample_id,decision,label,given\n{lines}\n")
    assert not (tmp_path / "clean.parquet").exists()


def test_a_name_of_two_labels_is_refused(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"id2label": {0: "a", 1: "b", 2: "b"}}))
    with pytest.raises(ValueError, match="'b' is the name of several labels"):
        cleaned(run, tmp_path, "sample_id,decision,label\n10,flip,b\n")


# ---- cleaned lists


@pytest.mark.parametrize(
    ("name", "first", "expected"),
    [
        ("train.csv", '"[1, 0,0]"', '"[1, 1,0]"'),
        ("train.tsv", "[1.0,0.0,0.0]", "[1.0,1.0,0.0]"),
        ("train.jsonl", "[true, false, false]", "[true, true, false]"),
        ("train.jsonl", '"[1, 0, 0]"', '"[1, 1, 0]"'),
        ("train.json", "[1.00, 0.00, 1e-9]", "[1.00, 1.00, 1e-9]"),
        ("train.csv", '"[True, False, False]"', '"[True, True, False]"'),
        ("train.csv", '" (1, 0, 0)"', '" (1, 1, 0)"'),
        ("train.csv", "[1. 0. 0.]", "[1. 1. 0.]"),
        ("train.csv", '"[1 0\n 0]"', '"[1 1\n 0]"'),
        ("train.jsonl", '["1", "0", "0"]', '["1", "1", "0"]'),
    ],
)
def test_a_number_turns_as_the_file_spells_it(tmp_path, name, first, expected):
    """No other row has these labels, so there is no spelling to copy."""
    logits = np.where(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]) == 1, 2, -2)
    run = run_of(tmp_path / "out", [[1, 0, 0], [0, 1, 0], [0, 0, 0]], [logits])
    cells, suffix = [first, *("[0, 1, 0]", "[0, 0, 0]")], Path(name).suffix
    if suffix.startswith(".json"):
        lines = [f'{{"sample_id": {10 + i}, "labels": {cell}, "x": [1]}}' for i, cell in enumerate(cells)]
    elif suffix == ".csv":
        lines = [
            "sample_id,labels",
            *(f"{10 + i},{cell}" for i, cell in enumerate([first, '"[0, 1, 0]"', '"[0,0,0]"'])),
        ]
    else:
        lines = ["sample_id\tlabels", *(f"{10 + i}\t{cell}" for i, cell in enumerate(cells))]
    text = "\n".join(lines) + "\n"
    (tmp_path / name).write_text(text)
    done = clean(run, tmp_path / name, tmp_path / f"clean{suffix}", relabel=True)
    assert (tmp_path / f"clean{suffix}").read_text() == text.replace(first, expected)
    assert dict(done.relabelled) == {("short", "short + funny"): 1}


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int8()),
        pa.list_(pa.float32(), 3),
        pa.list_(pa.bool_()),
        pa.large_list(pa.float64()),
        pa.string(),
        pa.list_(pa.string()),
    ],
)
def test_lists_keep_their_type(run, tmp_path, kind):
    cells = [json.dumps(row) for row in GIVEN] if kind == pa.string() else GIVEN
    if pa.types.is_list(kind) and pa.types.is_boolean(kind.value_type):
        cells = [[value == 1 for value in row] for row in GIVEN]
    if kind == pa.list_(pa.string()):
        cells = [[str(value) for value in row] for row in GIVEN]
    table = pa.table({"sample_id": range(10, 15), "labels": pa.array(cells, kind)})
    pq.write_table(table, tmp_path / "train.parquet")
    clean(run, tmp_path / "train.parquet", tmp_path / "clean.parquet", relabel=True)
    found = pq.read_table(tmp_path / "clean.parquet")
    assert found.schema.field("labels").type == kind
    labels = [json.loads(cell) if isinstance(cell, str) else cell for cell in found["labels"].to_pylist()]
    assert [[float(value) for value in row] for row in labels] == PREDICTED


def test_a_score_from_which_on_labels_are_flipped_is_that_of_labels(run, tmp_path):
    data_set().to_parquet(tmp_path / "train.parquet")
    worst = sorted((score for row in read_history(run)["noise_score_by_label"] for score in row), reverse=True)
    clean(run, tmp_path / "train.parquet", tmp_path / "clean.parquet", relabel=True, min_score=worst[1])
    found = pq.read_table(tmp_path / "clean.parquet")["labels"].to_pylist()
    assert found == [PREDICTED[0], [0, 1, 0], *GIVEN[2:]]


def test_flips_need_a_column_of_labels(run, tmp_path):
    data_set().remove_columns("labels").to_csv(tmp_path / "train.csv")
    with pytest.raises(ValueError, match="has no column of labels: expected one"):
        clean(run, tmp_path / "train.csv", tmp_path / "clean.csv", relabel=True)
    clean(run, tmp_path / "train.csv", tmp_path / "clean.csv", drop=True)
    with (tmp_path / "clean.csv").open() as lines:
        assert [row["sample_id"] for row in csv.DictReader(lines)] == ["12", "13", "14"]
