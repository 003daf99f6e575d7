"""The report: what it computes, what it writes, what it refuses. How the page behaves: test_browser.py."""

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreCorruptionError, StoreError, add_sample_ids, cli, write_report
from lstsd_hf.report import page as page_module
from lstsd_hf.report import run as run_module
from lstsd_hf.report.compare import write_comparison
from toys import config, rows, tiny_bert

NAN = np.nan
EPOCHS = 4


def with_texts(data: datasets.Dataset) -> datasets.Dataset:
    return data.add_column("text", [f"row {i}" for i in range(len(data))])


def train(folder: Path, head: str = "classes", **changes: Any) -> datasets.Dataset:
    """Trains on 24 of 30 rows, so that ids have gaps; returns those rows."""
    data = add_sample_ids(rows(30, head)).shuffle(seed=3).select(range(24))
    args = config(folder, num_train_epochs=EPOCHS, save_strategy="epoch", **changes)
    LSTSDTrainer(model=tiny_bert(head), args=args, train_dataset=data).train()
    return with_texts(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, datasets.Dataset]:
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder)


@pytest.fixture(scope="module")
def report(run: tuple[Path, datasets.Dataset]) -> Path:
    return write_report(*run)


def store_of(folder: Path, logits: Any, labels: Any, epochs: Any = None) -> Path:
    """A run folder with a store of (E, N, C) logits."""
    logits = np.asarray(logits, np.float32)
    store = LogitsStore.create(folder / "_logits", logits.shape[1], logits.shape[2:], "float32", "test")
    if labels is not None:
        store.write_labels(np.asarray(labels))
    for epoch, predicted in zip(epochs or range(len(logits)), logits, strict=True):
        store.record(epoch, np.arange(len(predicted)), predicted)
        store.seal(epoch)
    return folder


def samples_of(page: Path) -> list[dict[str, Any]]:
    return pq.read_table(page.parent / "samples.parquet").to_pylist()


def data_of(page: Path) -> dict[str, Any]:
    """The page's data, unpacked as its script does."""
    packed = re.search(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def tiles_of(page: Path) -> dict[str, str]:
    return dict(
        re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page.read_text(encoding="utf-8").split("</header>")[0])
    )


def notes_of(page: Path) -> str:
    return "\n".join(re.findall(r'<p class="note">([^<]*)</p>', page.read_text(encoding="utf-8")))


# ---- what is computed


def slowly(folder: Path, data: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """Yields each sample's row of the parquet file, computed in plain Python."""
    epochs = [np.load(folder / "_logits" / f"epoch-{epoch:04d}.npy").astype(float) for epoch in range(EPOCHS)]
    for sample_id, label in sorted(zip(data["sample_id"], data["label"], strict=True)):
        logits = [epoch[sample_id] for epoch in epochs]
        given = [np.exp(z[label]) / np.exp(z).sum() for z in logits]
        rest = [max(np.exp(z[k]) / np.exp(z).sum() for k in range(3) if k != label) for z in logits]
        margins = [z[label] - max(z[k] for k in range(3) if k != label) for z in logits]
        right = [int(z.argmax()) == label for z in logits]
        yield {
            "sample_id": sample_id,
            "label": label,
            "prediction": int(logits[-1].argmax()),
            "prediction_probability": max(given[-1], rest[-1]),
            "confidence": np.mean(given),
            "variability": np.std(given),
            "correctness": np.mean(right),
            "forgetting_events": sum(a and not b for a, b in pairwise(right)),
            "never_learnt": not any(right),
            "first_learnt": right.index(True) if any(right) else None,
            "area_under_margin": np.mean(margins),
            "noise_score": np.mean([(1 - (p - q)) / 2 for p, q in zip(given, rest, strict=True)]),
            "suggested_label": max(range(3), key=lambda k: sum(np.exp(z[k]) / np.exp(z).sum() for z in logits)),
        }


def test_samples_are_what_a_slow_reference_finds(run: tuple[Path, datasets.Dataset], report: Path) -> None:
    found = samples_of(report)
    expected = list(slowly(*run))
    assert len(found) == len(expected) == 24
    for row, reference in zip(found, expected, strict=True):
        higher = [other for other in expected if other["noise_score"] > reference["noise_score"]]
        assert row.pop("noise_rank") == 1 + len(higher)
        assert row.pop("looks_wrong") == (reference["noise_score"] > 0.5)
        assert row == pytest.approx(reference, abs=1e-5)


def test_chunks_change_nothing(
    run: tuple[Path, datasets.Dataset], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (report.parent / "samples.parquet").read_bytes(), np.load(report.parent / "pred_probs.npy")
    page = data_of(report)
    monkeypatch.setattr(run_module, "_ROWS_AT_ONCE", 7)
    assert write_report(*run) == report
    assert (report.parent / "samples.parquet").read_bytes() == whole[0]
    assert (np.load(report.parent / "pred_probs.npy") == whole[1]).all()
    assert data_of(report) == page


def test_cleanlab_takes_the_last_epoch(run: tuple[Path, datasets.Dataset], report: Path) -> None:
    ids, labels, probabilities = (
        np.load(report.parent / f"{name}.npy") for name in ("sample_ids", "labels", "pred_probs")
    )
    by_id = dict(zip(run[1]["sample_id"], run[1]["label"], strict=True))
    assert ids.tolist() == sorted(by_id)
    assert labels.tolist() == [by_id[i] for i in ids.tolist()]
    last = LogitsStore.open(run[0] / "_logits").read(EPOCHS - 1, ids)
    assert (probabilities.argmax(axis=1) == last.argmax(axis=1)).all()


def test_cleanlab_finds_a_flipped_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    true = np.arange(60) % 3
    logits = rng.normal(0, 0.3, (2, 60, 3)) + 3 * np.eye(3)[true]
    logits[:, [7, 20]] *= 2  # the model is sure of them
    logits[:, 59] = NAN  # without a prediction
    labels = true.copy()
    labels[[7, 20]] = (true[[7, 20]] + 1) % 3
    folder = write_report(store_of(tmp_path / "out", logits, labels)).parent
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import numpy.*?)```", page, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)
    assert found["sample_ids"].tolist() == list(range(59))
    assert found["issues"][:2].tolist() in ([7, 20], [20, 7])
    ranked = sorted(samples_of(folder / "report.html"), key=lambda row: row["noise_rank"] or 99)
    assert {row["sample_id"] for row in ranked[:2]} == {7, 20}
    assert ranked[-1]["sample_id"] == 59
    assert ranked[-1]["confidence"] is None
    assert ranked[-1]["noise_rank"] is None


def test_samples_that_were_never_seen_are_in_no_count(tmp_path: Path) -> None:
    logits = np.zeros((3, 10, 2))
    logits[:, :, 0] = 1
    logits[1, 0] = [0, 1]  # forgotten, and learnt again
    logits[:, 1] = [0, 1]  # never learnt
    logits[:, 4:] = NAN
    page = write_report(store_of(tmp_path, logits, [0] * 10))
    tiles = tiles_of(page)
    assert (tiles["forgotten at least once"], tiles["never learnt"]) == ("25.0%", "1")
    assert data_of(page)["figures"]["forgetting"]["data"][0]["text"] == ["1", "2", "1"]
    rows = samples_of(page)
    assert (rows[1]["forgetting_events"], rows[1]["never_learnt"]) == (0, True)
    known = {name for name, value in rows[9].items() if value is not None}
    assert known == {"sample_id", "label"}


# ---- the page


def test_the_page_holds_every_sample_the_most_suspicious_first(
    run: tuple[Path, datasets.Dataset], report: Path
) -> None:
    data, samples = data_of(report), {row["sample_id"]: row for row in samples_of(report)}
    ids = data["rows"]["id"]
    assert sorted(ids) == sorted(samples)
    assert [samples[i]["noise_rank"] for i in ids] == list(range(1, 25))
    texts = dict(zip(run[1]["sample_id"], run[1]["text"], strict=True))
    assert data["rows"]["text"] == [texts[i] for i in ids]
    assert data["rows"]["label"] == [samples[i]["label"] for i in ids]
    assert data["rows"]["predicted"][-1] == [samples[i]["prediction"] for i in ids]
    means = np.mean(data["rows"]["given"], axis=0)
    np.testing.assert_allclose(means, [100 * samples[i]["confidence"] for i in ids], atol=0.51)
    # The model's own config, in its last checkpoint, names the classes.
    assert data["classes"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert set(data["figures"]) == {"map", "losses", "agreement", "reliability", "forgetting"}


def test_the_log_and_the_classes_are_the_last_checkpoints_where_the_run_has_none(report: Path) -> None:
    assert not (report.parents[1] / "trainer_state.json").exists()
    assert not (report.parents[1] / "config.json").exists()
    figures = data_of(report)["figures"]
    assert [trace["name"] for trace in figures["losses"]["data"]] == [
        "all together",
        "label",
        "long-term teacher",
        "short-term teacher",
    ]
    logged = json.loads((report.parents[1] / f"checkpoint-{3 * EPOCHS}" / "trainer_state.json").read_text())
    last = [entry["long_term_agreement"] for entry in logged["log_history"] if "long_term_agreement" in entry][-3:]
    lines = {trace["name"]: trace["y"] for trace in figures["agreement"]["data"]}
    assert lines["long-term teacher"][-1] == pytest.approx(np.mean(last))
    assert len(lines["given label"]) == EPOCHS
    assert len(lines["short-term teacher"]) == EPOCHS - 1


def test_short_term_agreement_is_what_the_trainer_logged(report: Path) -> None:
    logged = json.loads((report.parents[1] / f"checkpoint-{3 * EPOCHS}" / "trainer_state.json").read_text())
    entries = [entry for entry in logged["log_history"] if "short_term_agreement" in entry]
    mean = np.mean([entry["short_term_agreement"] for entry in entries if entry["epoch"] > EPOCHS - 1])
    lines = {trace["name"]: trace["y"] for trace in data_of(report)["figures"]["agreement"]["data"]}
    assert lines["short-term teacher"][-1] == pytest.approx(mean)


def test_the_page_asks_for_nothing(report: Path) -> None:
    page = report.read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", re.sub(r"<style>.*?</style>", "", page, flags=re.S))
    assert links == ["data:,"]
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!['\"]?data:)", page)


def test_names_of_folders_and_classes_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    store_of(folder, np.zeros((1, 2, 2)), [0, 1])
    hostile = "</script><script>alert(1)</script>"
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": hostile, "1": "b"}}))
    page = write_report(folder)
    assert data_of(page)["classes"] == [hostile, "b"]
    text = page.read_text(encoding="utf-8")
    assert "<img" not in text
    assert hostile not in text


@pytest.mark.parametrize(
    ("head", "of_all", "kept"),
    [
        ("classes", ["noise_score", "noise_rank"], "The noise score is of all epochs"),
        (
            "regression",
            ["noise_score", "noise_rank", "mean_absolute_error"],
            "The mean absolute error and the noise score are of all epochs",
        ),
    ],
)
def test_of_few_epochs_the_noise_is_that_of_all(tmp_path: Path, head: str, of_all: list[str], kept: str) -> None:
    pages = {}
    for retention in ("all", "needed"):
        data = train(tmp_path / retention, head, logits_retention=retention)
        pages[retention] = write_report(tmp_path / retention, data)
    assert f"The store holds epochs 3 and no longer 0, 1, 2. {kept}, from a mean that" in notes_of(pages["needed"])
    assert "The store holds" not in notes_of(pages["all"])
    assert "logits_retention=&#34;all&#34;" in notes_of(pages["needed"])
    assert "forgetting" not in data_of(pages["needed"])["figures"]
    for few, every in zip(samples_of(pages["needed"]), samples_of(pages["all"]), strict=True):
        assert few["sample_id"] == every["sample_id"]
        assert few["variability"] == 0 != every["variability"]  # of the one epoch that is left
        for name in of_all:
            assert few[name] == pytest.approx(every[name], abs=1e-5), name


def test_few_epochs_without_a_mean_of_all_are_said_to_be_few(tmp_path: Path) -> None:
    """A store without a mean, one whose labels were corrected, and one whose mean is of an earlier epoch."""
    logits = np.array([[[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]])
    stores = [LogitsStore.open(store_of(tmp_path / f"{i}", logits, [0, 0, 0], [3]) / "_logits") for i in range(3)]
    misleading = np.array([[1.0, 4.0]] * 3, np.float32)  # sure of every label
    stores[1].write_statistic("margin", 3, misleading)
    stores[1].relabel([0, 0, 0], range(3), "corrected", epoch=3, step=9)
    stores[1].write_statistic("margin", 3, misleading)
    stores[2].write_statistic("margin", 2, misleading)
    for number in range(3):
        page = write_report(tmp_path / f"{number}")
        assert "All numbers here are of the epochs that it holds" in notes_of(page)
        given = np.exp(logits[0, :, 0]) / np.exp(logits[0]).sum(axis=1)
        expected = (1 - (given - (1 - given))) / 2
        assert [row["noise_score"] for row in samples_of(page)] == pytest.approx(expected, abs=1e-6)


def test_a_sample_that_the_store_lost_is_not_on_the_page(tmp_path: Path) -> None:
    logits = np.array([[[0.0, 1.0], [NAN, NAN], [2.0, 0.0]]])
    store = LogitsStore.open(store_of(tmp_path, logits, [0, 0, 0], [3]) / "_logits")
    store.write_statistic("margin", 3, np.array([[-0.5, 4], [0.25, 1], [0.5, 4]], np.float32))
    page = write_report(tmp_path)
    assert [row["noise_score"] for row in samples_of(page)] == [0.75, None, 0.25]
    assert "no prediction in any epoch that the store holds: 1." in notes_of(page)
    store.write_statistic("margin", 3, np.zeros(3, np.float32))
    with pytest.raises(StoreCorruptionError, match=r"margin-0003\.npy: expected a mean and a number of epochs"):
        write_report(tmp_path)


def test_one_epoch_and_no_log_and_no_texts(tmp_path: Path) -> None:
    page = write_report(store_of(tmp_path, [[[1.0, 0.0], [0.0, 1.0]]], [0, 0]))
    text = page.read_text(encoding="utf-8")
    assert "One epoch says nothing about variability and forgetting" in text
    assert "There is no loss curve" in text
    assert "The page shows ids" in text
    data = data_of(page)
    assert data["rows"]["text"] is None
    assert data["rows"]["id"] == [1, 0]
    assert set(data["figures"]) == {"map", "agreement", "reliability"}
    assert list(tiles_of(page)) == [
        "samples",
        "epochs",
        "predicted as labelled, last epoch",
        "calibration error, last epoch",
    ]
    assert "<h1>1 of 2 labels looks wrong</h1>" in text


@pytest.mark.parametrize("classes", [1, 2])
def test_a_last_epoch_with_gaps(tmp_path: Path, classes: int) -> None:
    logits = np.zeros((2, 6, classes))
    labels = np.array([0, 1] * 3, np.float32 if classes == 1 else np.int64)
    logits[1, 2:] = NAN
    page = write_report(store_of(tmp_path / "some", logits, labels))
    assert "none in the last one, 1: 4." in notes_of(page)
    assert "none" not in tiles_of(page).values()
    logits[1] = NAN
    logits[:, 0] = NAN
    page = write_report(store_of(tmp_path / "all", logits, labels))
    assert "no prediction in any epoch: 1." in notes_of(page)
    assert "none in the last one, 1: 5." in notes_of(page)
    names = ["predicted as labelled", "calibration error"] if classes == 2 else ["mean absolute error"]
    assert [tiles_of(page)[f"{name}, last epoch"] for name in names] == ["none"] * len(names)
    assert "nan" not in page.read_text(encoding="utf-8").split("</header>")[0]


def test_the_colours_of_the_map_are_of_the_whole_scale(tmp_path: Path) -> None:
    logits = np.array([[[0, 1.0]] * 2, [[1.0, 0]] * 2, [[1.0, 0]] * 2])  # right in 2 of 3 epochs, so mid-scale
    marker = data_of(write_report(store_of(tmp_path / "classes", logits, [0, 0])))["figures"]["map"]["data"][0][
        "marker"
    ]
    assert (marker["cmin"], marker["cmax"]) == (0, 1)
    folder = store_of(tmp_path / "scores", np.ones((1, 2, 1)), np.array([3, 5], np.float32))
    assert "cmin" not in data_of(write_report(folder))["figures"]["map"]["data"][0]["marker"]


def test_the_newer_log_is_read(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 2, 2)), [0, 1])

    def logged(own: int, checkpoint: int) -> list[float]:
        """The loss that the report shows: the run's log ends at step `own`, the checkpoint's at `checkpoint`."""
        (folder / "checkpoint-7").mkdir(exist_ok=True)
        for place, step, loss in ((folder, own, 9.0), (folder / "checkpoint-7", checkpoint, 0.5)):
            state = {"global_step": step, "log_history": [{"epoch": 1, "loss": loss}]}
            (place / "trainer_state.json").write_text(json.dumps(state))
        return data_of(write_report(folder))["figures"]["losses"]["data"][0]["y"]

    assert logged(own=4, checkpoint=7) == [0.5]
    assert logged(own=7, checkpoint=7) == [9.0]
    assert logged(own=9, checkpoint=7) == [9.0]


def test_the_report_of_a_checkpoint_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = train(tmp_path)
    checkpoint = tmp_path / f"checkpoint-{3 * EPOCHS}"
    before = sorted(checkpoint.rglob("*"))
    page = write_report(checkpoint, data)
    assert page == tmp_path / "_report" / "report.html"
    assert data_of(page)["epochs"] == list(range(EPOCHS))
    assert sorted(checkpoint.rglob("*")) == before
    monkeypatch.chdir(checkpoint)
    assert write_report(".") == page
    # The run continues, and its old checkpoints are deleted.
    args = config(tmp_path, num_train_epochs=EPOCHS + 2, save_strategy="epoch", save_total_limit=1)
    LSTSDTrainer(model=tiny_bert(), args=args, train_dataset=data).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{3 * (EPOCHS + 2)}"]
    assert data_of(write_report(tmp_path, data))["epochs"] == list(range(EPOCHS + 2))
    # A run's folder that only has the name of a checkpoint.
    other = store_of(tmp_path / "checkpoint-1", np.zeros((1, 2, 2)), [0, 1])
    assert write_report(other).parent == other / "_report"


def test_losses_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 2, 2)), [0, 1])
    log = [{"epoch": 0.5, "loss": NAN}, {"epoch": 1.0, "loss": 0.5}, {"train_runtime": 3}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    trace = data_of(write_report(folder))["figures"]["losses"]["data"][0]
    assert (trace["x"], trace["y"]) == ([0.5, 1.0], [None, 0.5])


def test_the_epoch_before_is_the_short_term_teacher_and_no_earlier_one(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.eye(2)[[[0, 1], [0, 1], [1, 1]]], [0, 0], epochs=[0, 2, 3])
    lines = {trace["name"]: trace for trace in data_of(write_report(folder))["figures"]["agreement"]["data"]}
    assert (lines["short-term teacher"]["x"], lines["short-term teacher"]["y"]) == ([3], [0.5])
    assert (lines["given label"]["x"], lines["given label"]["y"]) == ([0, 2, 3], [0.5, 0.5, 0])


def test_many_samples_are_drawn_from_and_paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "TABLE_ROWS", 60)
    monkeypatch.setattr(page_module, "MAP_POINTS", 20)
    monkeypatch.setattr(page_module, "SUSPECTS", 5)
    monkeypatch.setattr(page_module, "REVIEWED", 2)
    monkeypatch.setattr(page_module, "_ALL_TEXTS", 600)
    rng = np.random.default_rng(0)
    folder = store_of(tmp_path, rng.normal(size=(2, 200, 2)), rng.integers(0, 2, 200))
    texts = datasets.Dataset.from_dict({"sample_id": range(200), "words": ["a" * 99] * 200})
    page = write_report(folder, texts)
    data, rank = data_of(page), {row["sample_id"]: row["noise_rank"] for row in samples_of(page)}
    listed = [rank[i] for i in data["rows"]["id"]]
    assert listed == sorted(listed)
    assert listed[:40] == list(range(1, 41))  # the most suspicious, and then those of the map
    drawn = [listed[i] for i in data["drawn"]]
    assert len(drawn) == 20
    assert drawn[:5] == [1, 2, 3, 4, 5]
    assert max(drawn) > 100  # drawn from all samples, not only from the most suspicious
    length = 600 // len(listed)
    assert data["rows"]["text"] == ["a" * 99] * 2 + ["a" * (length - 1) + "…"] * (len(listed) - 2)
    text = page.read_text(encoding="utf-8")
    assert "The map shows 20 samples: the 5 most suspicious" in text
    assert "samples.parquet has all" in text
    assert f"Texts below rank 2 are cut at {length} characters ({len(listed) - 2} of them)" in text


def test_texts_that_are_cut_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of the most suspicious samples are cut at 5,000 characters, the others at 300."""
    monkeypatch.setattr(page_module, "REVIEWED", 2)
    folder = store_of(tmp_path, np.array([[[0, 9], [0, 8], [0, 7], [0, 6]]]), [0, 0, 0, 0])
    texts = ["a" * 5001, "b" * 5000, "c" * 301, "d" * 300]
    data = datasets.Dataset.from_dict({"sample_id": range(4), "text": texts})
    page = write_report(folder, data)
    assert data_of(page)["rows"]["text"] == ["a" * 4999 + "…", "b" * 5000, "c" * 299 + "…", "d" * 300]
    assert (
        "Texts are cut at 5,000 characters (1 of them); texts below rank 2 are cut at 300 characters (1 of them). A "
    ) in notes_of(page)
    short = datasets.Dataset.from_dict({"sample_id": range(4), "text": ["e", "f" * 5000, None, "d" * 300]})
    assert data_of(write_report(folder, short))["rows"]["text"] == ["e", "f" * 5000, "", "d" * 300]
    assert "cut at" not in notes_of(page)  # this report replaced the first one


# ---- regression


def test_regression(tmp_path: Path) -> None:
    data = train(tmp_path, "regression")
    page = write_report(tmp_path, data)
    samples = samples_of(page)
    stored = LogitsStore.open(tmp_path / "_logits")
    ids = np.array([row["sample_id"] for row in samples])
    predictions = np.stack([stored.read(epoch, ids)[:, 0] for epoch in range(EPOCHS)]).astype(float)
    labels = np.load(tmp_path / "_logits" / "labels.npy")[ids]
    error = np.abs(predictions - labels).mean(axis=0)
    np.testing.assert_allclose([row["mean_absolute_error"] for row in samples], error, rtol=1e-5)
    np.testing.assert_allclose([row["variability"] for row in samples], predictions.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose([row["noise_score"] for row in samples], error / (error + labels.std()), rtol=1e-5)
    np.testing.assert_allclose(np.load(page.parent / "predictions.npy"), predictions[-1], rtol=1e-6)
    assert not (page.parent / "pred_probs.npy").exists()
    assert set(data_of(page)["figures"]) == {"map", "losses", "error"}


def test_scores_of_any_size(tmp_path: Path) -> None:
    labels = np.array([1.23456e-4, -2e-4, 0, 1234.5678, 2.5], np.float32)
    predictions = labels + np.array([1.5e-5, 0, 0, 1.25, 0.25], np.float32)
    page = write_report(store_of(tmp_path, [predictions[:, None], labels[:, None]], labels))
    rows = data_of(page)["rows"]
    at = np.argsort(rows["id"])
    assert [rows["label"][i] for i in at] == [0.0001235, -0.0002, 0, 1234.568, 2.5]
    assert [rows["predicted"][0][i] for i in at] == [0.0001385, -0.0002, 0, 1235.818, 2.75]
    assert [rows["mean_absolute_error"][i] for i in at] == [7.5e-06, 0, 0, 0.625, 0.125]
    assert [rows["variability"][i] for i in at] == [7.5e-06, 0, 0, 0.625, 0.125]
    small = store_of(tmp_path / "small", labels[None, :2, None] + np.float32(8.7e-5), labels[:2])
    assert tiles_of(write_report(small))["mean absolute error, last epoch"] == "8.7e-05"


def test_arrays_of_an_earlier_report_of_the_other_kind_go(tmp_path: Path) -> None:
    classes = store_of(tmp_path / "classes", np.zeros((1, 2, 2)), [0, 1]) / "_logits"
    scores = store_of(tmp_path / "scores", np.zeros((1, 2, 1)), np.array([0, 1], np.float32)) / "_logits"
    for store, name in ((classes, "pred_probs"), (scores, "predictions"), (classes, "pred_probs")):
        folder = write_report(tmp_path, logits_dir=store).parent
        assert sorted(path.stem for path in folder.glob("*.npy")) == sorted(["labels", "sample_ids", name])


# ---- where the texts come from


@pytest.mark.parametrize("kind", ["folder", "dictionary", "csv", "tsv", "json", "jsonl", "parquet"])
def test_texts_from_files(tmp_path: Path, kind: str) -> None:
    folder = store_of(tmp_path / "run", np.zeros((1, 3, 2)), [0, 1, 0])
    data = datasets.Dataset.from_dict(
        {"one": ["null", 'say "a, b"', "c\u00fc"], "two": ["x", "y", "z"], "sample_id": [2, 0, 7], "label": ["a"] * 3}
    )
    path = tmp_path / f"texts[1].{kind}"
    if kind == "folder":
        data.save_to_disk(path)
    elif kind == "dictionary":
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(path)
    elif kind == "tsv":
        lines = ["one\ttwo\tsample_id", *("\t".join(map(str, row)) for row in zip(*data[:].values(), strict=True))]
        path.write_text("\n".join(line.removesuffix("\ta") for line in lines) + "\n", encoding="utf-8")
    elif kind in ("json", "jsonl"):
        data.to_json(path)
    else:
        getattr(data, f"to_{kind}")(path)
    shown = data_of(write_report(folder, path))["rows"]
    assert dict(zip(shown["id"], shown["text"], strict=True)) == {2: "null\nx", 0: 'say "a, b"\ny', 1: None}
    shown = data_of(write_report(folder, str(path), ["two"]))["rows"]
    assert dict(zip(shown["id"], shown["text"], strict=True)) == {2: "x", 0: "y", 1: None}


def test_texts_from_a_dictionary_in_memory_and_one_column_by_name(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 2, 2)), [0, 1])
    data = datasets.Dataset.from_dict({"sample_id": [0, 1], "text": ["a", "b"], "words": ["c", "d"]})
    splits = datasets.DatasetDict({"test": data.select([1]), "train": data})
    assert data_of(write_report(folder, splits))["rows"]["text"] == ["a\nc", "b\nd"]
    assert data_of(write_report(folder, data, "words"))["rows"]["text"] == ["c", "d"]
    with pytest.raises(ValueError, match=r"expected a split 'train', found 'other'"):
        write_report(folder, datasets.DatasetDict({"other": data}))


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    folder = store_of(tmp_path / "run", np.zeros((1, 3, 2)), [0, 1, 0])

    def refused(dataset: Any, match: str, columns: list[str] | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            write_report(folder, dataset, columns)

    named = datasets.Dataset.from_dict({"sample_id": [0, 1, 2], "text": ["a", "b", "c"]})
    refused(named.remove_columns("sample_id"), r"no column 'sample_id': expected 'sample_id', found 'text'")
    refused(named, r"no column 'words': expected 'sample_id', 'words'", ["words"])
    refused(named.remove_columns("text"), r"no column of text, but 'sample_id'")
    refused(datasets.Dataset.from_dict({"sample_id": [1, 1], "text": ["a", "b"]}), r"repeated sample ids")
    refused(tmp_path / "nothing.csv", r"nothing\.csv: no such file")
    refused(tmp_path / "texts.xlsx", r"expected a folder, or a file that ends in \.csv, ")
    refused(folder, r"expected a folder that Dataset.save_to_disk wrote")
    datasets.DatasetDict({"other": named}).save_to_disk(tmp_path / "splits")
    refused(tmp_path / "splits", r"expected a split 'train', found 'other'")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    refused(broken, r"cannot be read as parquet")
    others = datasets.Dataset.from_dict({"sample_id": [8, 9], "text": ["a", "b"]})
    refused(others, r"none of the 3 samples: expected ids such as 0, 1, 2, found 8, 9")


# ---- what is refused


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no logits store: .* name it \(--logits_dir\)"):
        write_report(tmp_path)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_run_that_diverged(tmp_path: Path, classes: int) -> None:
    labels = np.array([0, 1, 0], np.float32 if classes == 1 else np.int64)
    folder = store_of(tmp_path, np.full((2, 3, classes), NAN), labels)
    with pytest.raises(StoreError, match=r"no sample has a finite prediction: .* Has training diverged\?"):
        write_report(folder)


def test_no_sealed_epoch(tmp_path: Path) -> None:
    LogitsStore.create(tmp_path / "_logits", 3, (2,), "float16", "x").write_labels([0, 1, 0])
    with pytest.raises(StoreError, match="has no sealed epoch yet"):
        write_report(tmp_path)


def test_no_labels(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"labels\.npy is missing: expected the training labels"):
        write_report(store_of(tmp_path, np.zeros((1, 3, 2)), None))


def test_no_label_but_ignored_ones(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no label but -100"):
        write_report(store_of(tmp_path, np.zeros((1, 2, 2)), [-100, -100]))


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sample ids \[1\] are no classes: expected 0 to 1"):
        write_report(store_of(tmp_path, np.zeros((1, 3, 2)), [0, 2, -100]))


def test_damaged_labels(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 3, 2)), [0, 1, 0])
    (folder / "_logits" / "labels.npy").write_bytes(b"nonsense")
    with pytest.raises(StoreCorruptionError, match=r"labels\.npy is damaged"):
        write_report(folder)


def test_a_flipped_bit_in_an_epoch(tmp_path: Path) -> None:
    folder = store_of(tmp_path, np.zeros((1, 3, 2)), [0, 1, 0])
    file = folder / "_logits" / "epoch-0000.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(StoreCorruptionError, match=r"epoch-0000\.npy is damaged"):
        write_report(folder)


def test_several_labels_for_a_sample(tmp_path: Path) -> None:
    data = train(tmp_path, "multi_label")
    rows = data_of(write_report(tmp_path, data))["rows"]
    texts = dict(zip(data["sample_id"], data["text"], strict=True))
    assert set(rows["id"]) == set(texts)
    assert rows["text"] == [texts[i] for i in rows["id"]]


# ---- the command


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store_of(tmp_path / "elsewhere", np.zeros((1, 2, 2)), [0, 1])
    (tmp_path / "run").mkdir()
    (tmp_path / "texts.csv").write_text("id,a,b\n0,hello,there\n1,good,bye\n")
    argv = ["report", str(tmp_path / "run"), "--logits_dir", str(tmp_path / "elsewhere" / "_logits")]
    argv += ["--dataset", str(tmp_path / "texts.csv"), "--text_columns", "b", "--sample_id_column", "id"]
    cli.main(argv)
    page = tmp_path / "run" / "_report" / "report.html"
    assert capsys.readouterr().out.startswith(f"The report is {page},")
    assert data_of(page)["rows"]["text"] == ["there", "bye"]


def test_errors_of_the_command_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(folder: Path, start: str, *flags: str) -> None:
        with pytest.raises(SystemExit) as leaving:
            cli.main(["report", str(folder), *flags])
        assert leaving.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"lstsd report: error: {start}")
        assert error.count("\n") == 1

    refused(tmp_path, f"{tmp_path / '_logits'} holds no logits store")
    run = store_of(tmp_path / "run", np.zeros((1, 2, 2)), [0, 1])
    missing = tmp_path / "missing"
    refused(missing, f"{missing}: no such folder: expected a run's output_dir", "--logits_dir", str(run / "_logits"))
    refused(run, "--text_columns without --dataset", "--text_columns", "text")
    (run / "config.json").write_text("[]")
    refused(run, f"{run / 'config.json'} is damaged: expected a JSON object, found list")
    (run / "_report").write_text("")
    refused(run, f"{run / '_report'} is a file: expected a folder")


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lstsd_hf.report.write_report", refuse)
    with pytest.raises(SystemExit) as leaving:
        cli.main(["report", "run"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "lstsd report: error: [Errno 28] No space left on device\n"


def test_script(tmp_path: Path) -> None:
    store_of(tmp_path, np.zeros((1, 2, 2)), [0, 1])
    script = Path(__file__).parents[1] / "scripts" / "report.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, timeout=120)
    assert (tmp_path / "_report" / "report.html").is_file()


def test_runs_with_classes_in_another_order_are_not_compared(tmp_path: Path) -> None:
    for name, classes in (("a", ["no", "yes"]), ("b", ["yes", "no"])):
        folder = store_of(tmp_path / name, [[[1.0, 0.0]] * 3], [0, 1, 0])
        (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(classes))}))
    with pytest.raises(ValueError, match=r"the same classes in another order, \['no', 'yes'\] and \['yes', 'no'\]"):
        write_comparison(tmp_path / "a", tmp_path / "b")
