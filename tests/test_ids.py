"""Sample ids of any size: in the store, in training, resumed, in the report; and the message about lost ones."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreCorruptionError, StoreError, add_sample_ids, cli, write_report
from lstsd_hf.training.sample_ids import SampleIdError
from toys import Preempted, StopAfter, config, rows, tiny_bert, weights

FAR = 1_500_000_000_000_000_000  # as large as ids from a database, or hashes


def far_ids(count: int) -> list[int]:
    return [FAR + 977 * i for i in range(count)]


def renumbered(data: datasets.Dataset, ids: list[int]) -> datasets.Dataset:
    return data.add_column("sample_id", np.array(ids, np.int64))


def train(folder: Path, data: Any, **changes: Any) -> LSTSDTrainer:
    trainer = LSTSDTrainer(tiny_bert(), config(folder, num_train_epochs=3, **changes), train_dataset=data)
    trainer.train()
    return trainer


# ---- in the store


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_ids_are_read_as_they_were_recorded(data):
    ids = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20, unique=True))
    order = data.draw(st.permutations(ids))
    with tempfile.TemporaryDirectory() as folder:
        created = LogitsStore.create(Path(folder) / "s", max(ids) + 1, (2,), "float32", "toy", ids=ids)
        created.write_labels([i % 7 for i in range(len(order))], order)
        recorded = order[: data.draw(st.integers(0, len(order)))]
        for number, sample_id in enumerate(recorded):
            created.record(0, [sample_id], [[number, -number]])
        created.seal(0)
        store = LogitsStore.open(created.path)
        store.verify()
        found = store.read(0, np.array(order))
        expected = [
            [number, -number] if sample_id in recorded else [np.nan] * 2 for number, sample_id in enumerate(order)
        ]
        np.testing.assert_array_equal(found, expected)
        labels, ids_by_row = store.read_labels(), store.sample_ids
        assert labels is not None
        known = dict(zip(ids_by_row.tolist(), labels.tolist(), strict=True))
        assert [known[sample_id] for sample_id in order] == [i % 7 for i in range(len(order))]
        dense = max(ids) + 1 <= 4 * len(ids)
        assert (store.path / "ids.npy").exists() != dense
        assert len(np.load(store.path / "epoch-0000.npy")) == (max(ids) + 1 if dense else len(ids))


@pytest.mark.parametrize(("largest", "rows_on_disk"), [(39, 40), (40, 10)])
def test_ids_are_kept_where_more_than_three_of_four_rows_would_be_empty(tmp_path, largest, rows_on_disk):
    ids = [*range(9), largest]
    store = LogitsStore.create(tmp_path / "s", largest + 1, (3,), "float16", "toy", ids)
    store.record(0, ids, np.ones((10, 3)))
    store.seal(0)
    assert (store.num_samples, len(store.sample_ids)) == (largest + 1, rows_on_disk)
    assert np.load(tmp_path / "s" / "epoch-0000.npy").shape == (rows_on_disk, 3)
    if rows_on_disk == 10:
        assert np.load(tmp_path / "s" / "ids.npy").tolist() == ids


def test_a_dense_store_is_what_it_was_before_there_were_ids(tmp_path):
    for name, ids in (("without", None), ("with", [4, 0, 2])):
        store = LogitsStore.create(tmp_path / name, 5, (3,), "float32", "toy", ids)
        store.write_labels([0, -100, 1, -100, 2])
        store.record(0, [4, 0], np.arange(6).reshape(2, 3))
        store.seal(0)
    files = [{file.name: file.read_bytes() for file in (tmp_path / n).glob("*.*")} for n in ("without", "with")]
    assert files[0] == files[1]
    assert files[0].keys() == {"store.json", "labels.npy", "epoch-0000.npy"}
    assert b'"ids"' not in files[0]["store.json"]


@pytest.mark.parametrize(
    "ids", [[1, 1, 2], [-1, 2], [3, 10], [0.5, 1], [], ["a"], [[1, 2]], np.array([2**63], np.uint64)], ids=repr
)
def test_ids_that_are_no_ids_make_no_store(tmp_path, ids):
    with pytest.raises(ValueError, match="expected int"):
        LogitsStore.create(tmp_path / "s", 10, (3,), "float32", "toy", ids)
    assert not (tmp_path / "s").exists()


def test_an_id_that_the_store_does_not_have_is_refused(tmp_path):
    ids = far_ids(4)
    store = LogitsStore.create(tmp_path / "s", ids[-1] + 1, (3,), "float32", "toy", ids)
    store.record(0, ids, np.zeros((4, 3)))
    store.seal(0)
    for wrong in ([ids[0] + 1], [0], [-1], np.array([2**63 + 5], np.uint64), [ids[-1] + 1]):
        message = rf"Sample ids \[{int(wrong[0])}\] are outside .* expected one of 4 from {ids[0]} to {ids[-1]}"
        with pytest.raises(StoreError, match=message):
            store.read(0, wrong)
        with pytest.raises(StoreError, match=message):
            store.record(1, wrong, np.zeros((1, 3)))


@pytest.mark.parametrize("damage", ["remove", "cut", "order", "value"])
def test_damaged_ids_are_named(tmp_path, damage):
    ids = far_ids(4)
    store = LogitsStore.create(tmp_path / "s", ids[-1] + 1, (3,), "float32", "toy", ids)
    file = tmp_path / "s" / "ids.npy"
    changed = {"order": ids[::-1], "value": [*ids[:3], ids[3] - 1]}.get(damage)
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        np.save(file, np.array(changed))
    with pytest.raises(StoreCorruptionError, match=r"ids\.npy is (missing or )?damaged"):
        LogitsStore.open(store.path).verify()


# ---- in training


def test_far_ids_train_resume_and_report_like_near_ones(tmp_path):
    """24 rows with ids of 1.5e18 give the same weights, and the same files of 24 rows, as with ids from 0 to 23."""
    data, ids = rows(24), far_ids(24)
    near = train(tmp_path / "near", renumbered(data, list(range(24))))
    folder = tmp_path / "far"
    cut = config(folder, num_train_epochs=3, save_strategy="steps", save_steps=4)
    trainer = LSTSDTrainer(tiny_bert(), cut, train_dataset=renumbered(data, ids), callbacks=[StopAfter(4)])
    with pytest.raises(Preempted):
        trainer.train()
    far = LSTSDTrainer(tiny_bert(), cut, train_dataset=renumbered(data, ids))
    far.train(resume_from_checkpoint=True)
    assert torch.equal(weights(far.model), weights(near.model))
    files = [
        {file.name: file.read_bytes() for file in (tmp_path / name / "_logits").glob("*.npy")}
        for name in ("near", "far")
    ]
    assert np.load(folder / "_logits" / "ids.npy").tolist() == ids
    assert files[1].pop("ids.npy")
    assert files[0] == files[1]
    store = LogitsStore.open(folder / "_logits")
    store.verify()
    assert (store.num_samples, store.fingerprint[:7]) == (ids[-1] + 1, "24 rows")
    assert f"24, with ids from {ids[0]} to {ids[-1]}\n" in cli.info(store)

    texts = renumbered(data, ids).map(lambda row: {"text": f"row {row['sample_id']}"}).shuffle(seed=1)
    page = write_report(folder, texts)
    assert np.load(page.parent / "sample_ids.npy").tolist() == ids
    assert pq.read_table(page.parent / "samples.parquet")["sample_id"].to_pylist() == ids
    assert sum(path.stat().st_size for path in (folder / "_logits").rglob("*.npy")) < 10_000


def test_far_ids_in_any_order_have_their_own_teachers(tmp_path):
    data = renumbered(rows(24), [FAR - 5 * i for i in range(24)]).shuffle(seed=4)  # not ascending
    trainer = train(tmp_path, data, dataloader_num_workers=1, train_sampling_strategy="sequential")
    store = LogitsStore.open(tmp_path / "_logits")
    assert np.isfinite(store.read(2, data["sample_id"][:])).all()
    assert store.read_labels()[np.argsort(np.argsort(data["sample_id"][:]))].tolist() == data["label"][:]
    again = train(
        tmp_path / "again",
        renumbered(data.remove_columns("sample_id"), list(range(24))),
        dataloader_num_workers=1,
        train_sampling_strategy="sequential",
    )
    assert torch.equal(weights(trainer.model), weights(again.model))


# ---- messages


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "sample id" in record.getMessage()]


def test_lost_ids_are_said_in_one_line(tmp_path, caplog):
    numbered = add_sample_ids(rows(8))
    train(tmp_path / "kept", numbered)
    assert warnings_of(caplog) == []
    lost = numbered.map(
        lambda row: {"input_ids": row["input_ids"], "label": row["label"]}, remove_columns=numbered.column_names
    )
    train(tmp_path / "lost", lost)
    (said,) = warnings_of(caplog)
    assert "no column 'sample_id', or lost it on the way" in said
    assert "a row's position is its sample id" in said
    assert "\n" not in said


def test_sets_that_were_joined_after_they_were_numbered(tmp_path):
    """What the message advises works."""
    joined = datasets.concatenate_datasets([add_sample_ids(rows(8, seed=seed)) for seed in (0, 1)])
    with pytest.raises(SampleIdError, match=r"add_sample_ids\(dataset\.remove_columns\('sample_id'\), 'sample_id'\)"):
        train(tmp_path / "joined", joined)
    train(tmp_path / "numbered", add_sample_ids(joined.remove_columns("sample_id"), "sample_id"))
    assert LogitsStore.open(tmp_path / "numbered" / "_logits").num_samples == 16


def test_a_key_that_is_text_stays_and_another_column_has_the_ids(tmp_path):
    data = rows(8).add_column("sample_id", [f"key-{i}" for i in range(8)])
    with pytest.raises(
        SampleIdError, match=r"holds string: .*another column name, and give that name as sample_id_col"
    ):
        train(tmp_path / "text", data)
    train(tmp_path / "ids", add_sample_ids(data, "row"), sample_id_column="row")


def test_an_id_beyond_64_bits_with_sign_is_named(tmp_path):
    data = rows(8).add_column("sample_id", np.arange(8, dtype=np.uint64) + np.uint64(2**63 - 4))
    with pytest.raises(SampleIdError, match=rf"4 too large sample ids, first \[{2**63}"):
        train(tmp_path, data)


def test_a_torch_data_set_with_ids_of_its_own_needs_their_number(tmp_path):
    items = [
        {"input_ids": row["input_ids"], "labels": row["label"], "sample_id": 10 * i} for i, row in enumerate(rows(8))
    ]
    with pytest.raises(SampleIdError, match="Give the largest id plus 1 with the arguments"):
        train(tmp_path / "few", items)
    train(tmp_path / "enough", items, num_samples=71)
    shutil.rmtree(tmp_path / "few")
    assert LogitsStore.open(tmp_path / "enough" / "_logits").num_samples == 71


def test_subsets_of_numbered_sets_under_plain_arguments(tmp_path):
    """Their ids are read where torch's wrappers keep the data sets, so the largest need not be given."""
    numbered = add_sample_ids(rows(20))
    parts = [torch.utils.data.Subset(numbered, range(10, 18)), numbered.select(range(18, 20))]
    plain = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False
    )
    LSTSDTrainer(tiny_bert(), plain, train_dataset=torch.utils.data.ConcatDataset(parts)).train()
    store = LogitsStore.open(tmp_path / "_logits")
    assert store.num_samples == 20
    assert np.isfinite(store.read(0, range(10, 20))).all()
    assert np.isnan(store.read(0, range(10))).all()


def test_parts_of_a_torch_data_set_with_ids_in_common_are_refused(tmp_path):
    """Two rows with one id would teach each other, wherever they do not meet in a batch."""
    parts = [add_sample_ids(rows(8, seed=seed)) for seed in (0, 1)]
    for joined in (
        torch.utils.data.ConcatDataset(parts),
        torch.utils.data.Subset(torch.utils.data.ConcatDataset(parts), range(4, 14)),
    ):
        with pytest.raises(SampleIdError, match=r"repeated sample ids.*datasets\.concatenate_datasets"):
            train(tmp_path / "joined", joined, num_samples=16, per_device_train_batch_size=1)
    assert not (tmp_path / "joined" / "_logits").exists()
    joined = datasets.concatenate_datasets(parts)
    train(tmp_path / "numbered", add_sample_ids(joined.remove_columns("sample_id"), "sample_id"))
