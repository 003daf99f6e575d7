"""Sample ids, the fingerprint and the collator, on real data sets and real data loaders."""

import pickle
from multiprocessing.reduction import ForkingPickler

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from lstsd_hf import LogitsStore, add_sample_ids
from lstsd_hf.data import (
    SAMPLE_IDS,
    TEACHER_LOGITS,
    IdentifiedDataset,
    SampleIdError,
    SentByValue,
    TeacherCollator,
    fingerprint,
    inspect_training_set,
    sample_ids_of,
)
from toys import rows


def text(count: int = 10) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(count)]})


# ---- add_sample_ids


def test_ids_name_rows_for_good():
    numbered = add_sample_ids(text())
    assert numbered.features["sample_id"] == datasets.Value("int64")
    assert numbered["sample_id"][:] == list(range(10))
    assert numbered["text"][:] == text()["text"][:]
    changed = numbered.shuffle(seed=3).filter(lambda row: row["sample_id"] % 3 > 0).train_test_split(0.3, seed=1)
    for part in changed.values():
        assert [f"row {i}" for i in part["sample_id"]] == part["text"][:]


def test_splits_are_numbered_on_their_own():
    numbered = add_sample_ids(datasets.DatasetDict(train=text(4), test=text(2)), column="key")
    assert {name: split["key"][:] for name, split in numbered.items()} == {"train": [0, 1, 2, 3], "test": [0, 1]}


def test_streams_are_numbered():
    assert [row["sample_id"] for row in add_sample_ids(text().to_iterable_dataset())] == list(range(10))


def test_a_stream_of_several_shards_is_refused():
    with pytest.raises(ValueError, match="3 shards, and each worker would number its own"):
        add_sample_ids(text().to_iterable_dataset(num_shards=3))


@pytest.mark.parametrize("stream", [False, True])
def test_an_existing_column_is_not_overwritten(stream):
    data = text().to_iterable_dataset() if stream else text()
    with pytest.raises(ValueError, match="has a column 'text' already"):
        add_sample_ids(data, column="text")


def test_formats_survive_and_transforms_do_not_run():
    shown = add_sample_ids(rows(4).with_format("torch", columns=["input_ids"]))
    assert isinstance(shown[0]["input_ids"], torch.Tensor)
    assert set(shown[0]) == {"input_ids", "sample_id"}

    def explode(batch):
        raise AssertionError("the transform ran")

    hidden = add_sample_ids(text().with_transform(explode))
    assert hidden.with_format(None)["sample_id"][:] == list(range(10))
    assert hidden.format["format_kwargs"]["transform"] is explode


# ---- what is refused before the first step


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 1, 2, 2], r"2 repeated sample ids, first \[1, 2\] in rows \[2, 4\]"),
        ([3, -1, -7], r"2 negative sample ids, first \[-1, -7\] in rows \[1, 2\]"),
        ([3, None, 5, None], r"no sample id in 2 rows, first in rows \[1, 3\]"),
        ([0.0, 1.0], "holds double: expected integer sample ids"),
        (["a", "b"], "holds string: expected integer"),
    ],
)
def test_bad_ids_are_refused_by_name(ids, message):
    data = datasets.Dataset.from_dict({"sample_id": ids, "label": [0] * len(ids)})
    with pytest.raises(SampleIdError, match=message):
        inspect_training_set(data, "sample_id", None, None)


def test_ids_may_have_gaps():
    data = add_sample_ids(rows(10)).select([8, 2, 5])
    found = inspect_training_set(data, "sample_id", None, None)
    assert found.num_samples == 9
    labels = found.labels_by_id()
    np.testing.assert_array_equal(np.flatnonzero(labels != -100), [2, 5, 8])
    np.testing.assert_array_equal(labels[[8, 2, 5]], data["label"][:])


def test_streams_need_ids_and_their_number():
    stream = rows(4).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"iterable with columns \['input_ids'.*num_samples=4: expected a column"):
        inspect_training_set(stream, "sample_id", None, 4)
    with pytest.raises(ValueError, match="num_samples=None: expected"):
        inspect_training_set(add_sample_ids(stream), "sample_id", None, None)
    assert inspect_training_set(add_sample_ids(stream), "sample_id", None, 4).num_samples == 4


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="training set is empty"):
        inspect_training_set(rows(3).select([]), "sample_id", None, None)


# ---- the fingerprint


def print_of(data: datasets.Dataset) -> str:
    return inspect_training_set(data, "sample_id", None, None).fingerprint


def test_the_fingerprint_is_that_of_the_rows_in_any_order_and_storage(tmp_path):
    data = add_sample_ids(rows(200))
    data.save_to_disk(tmp_path / "copy")
    halves = [data.select(range(120, 200)), data.select(range(120))]
    for same in (
        data.shuffle(seed=1),
        datasets.load_from_disk(tmp_path / "copy"),
        datasets.concatenate_datasets(halves),
    ):
        assert print_of(same) == print_of(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {"label": row["label"] + (row["sample_id"] == 7)},
        lambda row: {"sample_id": row["sample_id"] + 200 * (row["sample_id"] == 7)},
        lambda row: {"input_ids": row["input_ids"][: 7 if row["sample_id"] == 7 else 8]},
        lambda row: {"input_ids": row["input_ids"][::-1] if row["sample_id"] == 7 else row["input_ids"]},
    ],
    ids=["label", "id", "length", "order of tokens"],
)
def test_the_fingerprint_changes_with_one_value_of_one_row(change):
    data = add_sample_ids(rows(200))
    assert print_of(data.map(change)) != print_of(data)


def test_the_fingerprint_changes_when_two_rows_swap_their_ids():
    data = add_sample_ids(rows(20))
    swapped = data.map(lambda row: {"sample_id": {3: 4, 4: 3}.get(row["sample_id"], row["sample_id"])})
    assert print_of(swapped) != print_of(data)


def test_the_fingerprint_does_not_depend_on_widths_chunks_or_where_an_image_lies():
    narrow = rows(50).cast_column("input_ids", datasets.List(datasets.Value("int32")))
    assert print_of(narrow) == print_of(rows(50))
    here, there = (
        datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": f"{folder}/1.png"}]}) for folder in ("/a", "/b")
    )
    assert print_of(here) == print_of(there)


def test_every_kind_of_column_counts():
    values = {
        "text": ["a", "b", None],
        "bytes": [b"a", b"b", None],
        "flag": [True, False, None],
        "number": [1.5, float("nan"), None],
        "nested": [[["q"], []], [], None],
        "fixed": pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2)),
        "record": [{"a": 1, "b": "x"}, {"a": 2, "b": None}, None],
        "time": pa.array([1, 2, None], pa.timestamp("s")),
        "category": pa.array(["u", "v", None]).dictionary_encode(),
    }
    ids = np.arange(3)
    for name, column in values.items():
        table = pa.table({name: column})
        same = fingerprint(datasets.Dataset(table), ids, [name])
        assert same == fingerprint(datasets.Dataset(pa.concat_tables([table[:1], table[1:]])), ids, [name]), name
        found = {same} | {
            fingerprint(datasets.Dataset(table.take(order)), ids, [name]) for order in ([1, 0, 2], [0, 2, 1])
        }
        assert len(found) == 3, name


# ---- the collator


class Squares(torch.utils.data.Dataset):
    """A torch data set of tuples, which have no room for an id."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index, index * index


def tuples(items: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([x for x, _ in items]), "y": torch.tensor([y for _, y in items])}


@pytest.fixture
def store(tmp_path):
    store = LogitsStore.create(tmp_path / "s", 6, (2,), "float32", "toy")
    for epoch in range(3):
        store.record(epoch, np.arange(5), 10 * epoch + np.arange(10.0).reshape(5, 2))
        store.seal(epoch)
    return store


@pytest.mark.parametrize("workers", ["none", "fork", "spawn", "fork persistent", "spawn persistent"])
def test_teachers_reach_the_batch_in_workers_of_every_kind(store, workers):
    collator = TeacherCollator(tuples, "sample_id", 6, str(store.path))
    kind, _, persistent = workers.partition(" ")
    count = {"none": 0, "fork": 2, "spawn": 1}[kind]  # a spawned worker takes seconds to import torch
    settings = {"num_workers": count, "multiprocessing_context": kind} if count else {}
    loader = DataLoader(
        IdentifiedDataset(Squares(), range(6)),
        batch_size=3,
        shuffle=True,
        collate_fn=collator,
        persistent_workers=bool(persistent),
        **settings,
    )
    for long_term, short_term in [(-1, 0), (0, 2)]:
        collator.epochs.copy_(torch.tensor([long_term, short_term]))
        seen = []
        for batch in loader:
            ids = batch[SAMPLE_IDS]
            seen += ids.tolist()
            assert batch["x"].tolist() == ids.tolist()
            assert batch["y"].tolist() == (ids**2).tolist()
            for name, epoch in {"long_term": long_term, "short_term": short_term}.items():
                found = batch.get(TEACHER_LOGITS[name])
                if epoch < 0:
                    assert found is None
                else:
                    np.testing.assert_array_equal(found.numpy(), store.read(epoch, ids.numpy()))
                    assert found.isnan().any(dim=1).tolist() == (ids == 5).tolist()
        assert sorted(seen) == list(range(6))


def test_a_tensor_sent_by_value_arrives_as_a_plain_one_that_owns_its_memory():
    array = np.arange(6, dtype=np.float16).reshape(3, 2)
    sent = bytes(ForkingPickler.dumps(SentByValue.from_numpy(array)))  # as a queue between processes does it
    assert b"rebuild_storage" not in sent
    arrived = pickle.loads(sent)
    assert type(arrived) is torch.Tensor
    assert arrived.dtype == torch.float16
    assert torch.equal(arrived, torch.from_numpy(array))
    arrived += 1  # which numpy would warn of, were it read-only
    assert b"rebuild_storage" in bytes(ForkingPickler.dumps(torch.from_numpy(array)))


def test_ids_are_taken_out_of_dictionaries_without_touching_them(store):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path))
    features = [{"sample_id": 3, "x": 1}, {"sample_id": np.int32(0), "x": 2}, {"sample_id": torch.tensor(2), "x": 3}]
    batch = collator(features)
    assert set(batch) == {"x", SAMPLE_IDS}
    assert batch[SAMPLE_IDS].tolist() == [3, 0, 2]
    assert [int(feature["sample_id"]) for feature in features] == [3, 0, 2]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"x": 1}, r"no 'sample_id': expected an integer sample id in every row, found \['x'\]"),
        ((1, 2), r"no 'sample_id': .* found tuple"),
        ({"sample_id": 1.0}, r"sample_id=1.0: expected an integer"),
        ({"sample_id": "7"}, r"sample_id='7': expected an integer"),
        ({"sample_id": None}, r"sample_id=None: expected an integer"),
        ({"sample_id": -2}, r"sample_id=-2: expected 0 to 5"),
        ({"sample_id": 6}, r"sample_id=6: expected 0 to 5\. Give the largest id plus 1 as num_samples"),
    ],
)
def test_rows_without_a_proper_id_are_refused_at_their_batch(store, feature, message):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path))
    with pytest.raises(SampleIdError, match=message):
        collator([feature])


def test_items_of_a_torch_data_set_may_have_ids_of_their_own(store):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path))
    items = IdentifiedDataset([{"sample_id": 5 - i, "x": i} for i in range(6)], range(6))
    batch = collator([items[0], items[1], items[0]])  # a sampler may draw a row twice
    assert batch[SAMPLE_IDS].tolist() == [5, 4, 5]
    assert batch["x"].tolist() == [0, 1, 0]
    twins = IdentifiedDataset([{"sample_id": 3, "x": i} for i in range(6)], range(6))
    with pytest.raises(SampleIdError, match="Rows 2 and 4 of the training set share sample_id=3"):
        collator([twins[2], twins[4]])
    mixed = IdentifiedDataset([{"sample_id": 1, "x": 0}, {"x": 1}], range(2))
    with pytest.raises(SampleIdError, match="has no 'sample_id'"):
        collator([mixed[0], mixed[1]])


def test_a_collator_must_make_a_mapping(store):
    collator = TeacherCollator(lambda features: [1], "sample_id", 6, str(store.path))
    with pytest.raises(TypeError, match="returned a list: expected a mapping"):
        collator([{"sample_id": 1}])


def test_identified_rows_are_fetched_at_once_where_the_data_set_can():
    data = rows(9)
    named = IdentifiedDataset(data, sample_ids_of(data, "sample_id"))
    assert len(named) == 9
    assert named[4].position == 4
    assert named[4].row == data[4]
    fetched = named.__getitems__([5, 0])
    assert [row.position for row in fetched] == [5, 0]
    assert [row.row for row in fetched] == [data[5], data[0]]
