"""Sample ids and teachers on their way into a batch, with real data loaders and worker processes."""

import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from lstsd_hf import LogitsStore, StoreError
from lstsd_hf.method.statistics import TAUGHT_FROM, Statistic
from lstsd_hf.method.teachers import Teacher
from lstsd_hf.training.collator import (
    SAMPLE_IDS,
    IdentifiedDataset,
    SentByValue,
    TeacherCollator,
    TeachingEpochs,
    teacher_key,
)
from lstsd_hf.training.sample_ids import SampleIdError, sample_ids_of
from toys import rows

MAPS = Path("/proc/self/maps")


class Squares(torch.utils.data.Dataset):
    """A torch data set of tuples, which have no room for an id."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index, index * index


def never(*_):
    """The epoch and the weight of a teacher, which no test needs: each test sets the teaching epochs itself."""


def teaching(*epochs: int | None, teachers: tuple[Teacher, ...] = ()) -> TeachingEpochs:
    """The epochs that teach now, one for each teacher; by default the teachers are the method's two."""
    found = TeachingEpochs(teachers or [Teacher(name, never, never) for name in ("long_term", "short_term")])
    found.set(epochs or [None] * len(found.sources))
    return found


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
    now = teaching()
    collator = TeacherCollator(tuples, "sample_id", 6, str(store.path), now)
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
    for long_term, short_term in [(None, 0), (0, 2)]:
        now.set([long_term, short_term])
        seen = []
        for batch in loader:
            ids = batch[SAMPLE_IDS]
            seen += ids.tolist()
            assert batch["x"].tolist() == ids.tolist()
            assert batch["y"].tolist() == (ids**2).tolist()
            for name, epoch in {"long_term": long_term, "short_term": short_term}.items():
                found = batch.get(teacher_key(name))
                if epoch is None:
                    assert found is None
                else:
                    np.testing.assert_array_equal(found.numpy(), store.read(epoch, ids.numpy()))
                    assert found.isnan().any(dim=1).tolist() == (ids == 5).tolist()
        assert sorted(seen) == list(range(6))


def test_all_loaders_of_a_run_read_the_same_epochs(store):
    """A loader that is made later does not take the teachers from one that is in use."""
    now = teaching()
    first, second = (TeacherCollator(tuples, "sample_id", 6, str(store.path), now) for _ in range(2))
    for epoch in (0, 2, None):
        now.set([None, epoch])
        batches = [collator(IdentifiedDataset(Squares(), range(6)).__getitems__([3])) for collator in (first, second)]
        for batch in batches:
            assert (teacher_key("short_term") in batch) == (epoch is not None)
            if epoch is not None:
                np.testing.assert_array_equal(batch[teacher_key("short_term")].numpy(), store.read(epoch, [3]))


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's list of mapped files")
def test_epochs_that_were_dropped_are_let_go(store):
    """A memory map of a deleted file would keep its disk space in use."""
    now = teaching(0, 1)
    collator = TeacherCollator(tuples, "sample_id", 6, str(store.path), now)
    items = IdentifiedDataset(Squares(), range(6))
    collator(items.__getitems__([1]))
    assert str(store.epoch_path(0)) in MAPS.read_text()
    store.drop(0)
    now.set([None, 1])
    collator(items.__getitems__([1]))
    assert str(store.epoch_path(0)) not in MAPS.read_text()
    assert str(store.epoch_path(1)) in MAPS.read_text()


def test_a_teacher_may_be_read_from_another_store(store, tmp_path):
    other = LogitsStore.create(tmp_path / "other", 6, (2,), "float16", "a model before this one")
    other.record(7, np.arange(6), np.full((6, 2), 0.25))
    other.seal(7)
    friend = Teacher("friend", never, never, store=str(other.path))
    own = Teacher("short_term", never, never)
    collator = TeacherCollator(tuples, "sample_id", 6, str(store.path), teaching(7, 2, teachers=(friend, own)))
    items = IdentifiedDataset(Squares(), range(6))
    batch = collator(items.__getitems__([4, 0]))
    assert batch[teacher_key("friend")].tolist() == [[0.25, 0.25]] * 2
    np.testing.assert_array_equal(batch[teacher_key("short_term")].numpy(), store.read(2, [4, 0]))


def test_a_teacher_may_be_read_from_a_statistic_of_its_epoch(store, monkeypatch):
    monkeypatch.setitem(TAUGHT_FROM, "mean", Statistic("mean", never, teaches=True))
    values = np.arange(18, dtype=np.float32).reshape(6, 3)  # the columns of a row, and a count
    store.write_statistic("mean", 2, values)
    mean = Teacher("mean", never, never, track="mean")
    now = teaching(2, teachers=(mean,))
    collator = TeacherCollator(tuples, "sample_id", 6, str(store.path), now)
    items = IdentifiedDataset(Squares(), range(6))
    found = collator(items.__getitems__([5, 1]))[teacher_key("mean")]
    np.testing.assert_array_equal(found.numpy(), values[[5, 1], :2])
    now.set([1])
    with pytest.raises(StoreError, match="no statistic 'mean' of epoch 1, which a teacher is read from"):
        collator(items.__getitems__([5]))
    now.set([None])
    assert teacher_key("mean") not in collator(items.__getitems__([5]))


def test_a_tensor_sent_by_value_arrives_as_a_plain_one_that_owns_its_memory():
    array = np.arange(6, dtype=np.float16).reshape(3, 2)
    sent = bytes(ForkingPickler.dumps(SentByValue.from_numpy(array)))  # as a queue between processes sends it
    assert b"rebuild_storage" not in sent
    arrived = pickle.loads(sent)
    assert type(arrived) is torch.Tensor
    assert arrived.dtype == torch.float16
    assert torch.equal(arrived, torch.from_numpy(array))
    arrived += 1  # its memory is writable
    assert b"rebuild_storage" in bytes(ForkingPickler.dumps(torch.from_numpy(array)))


def test_ids_are_taken_out_of_dictionaries_without_touching_them(store):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path), teaching())
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
        ({"sample_id": 6}, r"sample_id=6: expected 0 to 5\. Give the largest id plus 1 with the arguments"),
    ],
)
def test_rows_without_a_proper_id_are_refused_at_their_batch(store, feature, message):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path), teaching())
    with pytest.raises(SampleIdError, match=message):
        collator([feature])


def test_items_of_a_torch_data_set_may_have_ids_of_their_own(store):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path), teaching())
    items = IdentifiedDataset([{"sample_id": 5 - i, "x": i} for i in range(6)], range(6))
    batch = collator(items.__getitems__([0, 1, 0]))  # a sampler may draw a row twice
    assert batch[SAMPLE_IDS].tolist() == [5, 4, 5]
    assert batch["x"].tolist() == [0, 1, 0]
    twins = IdentifiedDataset([{"sample_id": 3, "x": i} for i in range(6)], range(6))
    with pytest.raises(SampleIdError, match="Rows 2 and 4 of the training set share sample_id=3"):
        collator(twins.__getitems__([2, 4]))
    mixed = IdentifiedDataset([{"sample_id": 1, "x": 0}, {"x": 1}], range(2))
    with pytest.raises(SampleIdError, match="has no 'sample_id'"):
        collator(mixed.__getitems__([0, 1]))


def test_a_collator_must_make_a_mapping(store):
    collator = TeacherCollator(lambda features: [1], "sample_id", 6, str(store.path), teaching())
    with pytest.raises(TypeError, match="returned a list: expected a mapping"):
        collator([{"sample_id": 1}])


def test_identified_rows_are_fetched_at_once_where_the_data_set_can():
    data = rows(9)
    named = IdentifiedDataset(data, sample_ids_of(data, "sample_id"))
    assert len(named) == 9
    assert named[4] == data[4]  # to everything but the data loader it behaves as the data set
    fetched = named.__getitems__([5, 0])
    assert [row.position for row in fetched] == [5, 0]
    assert [row.row for row in fetched] == [data[5], data[0]]


class Lessons(Squares):
    """A data set with a setting that a callback changes."""

    difficulty = 1


def test_an_identified_data_set_has_the_attributes_of_the_one_that_it_wraps():
    lessons = Lessons()
    named = IdentifiedDataset(lessons, range(6))
    assert named.difficulty == 1
    named.difficulty = 2
    assert lessons.difficulty == 2
    with pytest.raises(AttributeError, match="set_epoch"):
        named.set_epoch(1)


def test_an_index_that_is_no_position_needs_an_id_in_the_row(store):
    collator = TeacherCollator(default_data_collator, "sample_id", 6, str(store.path), teaching())
    named = IdentifiedDataset({"a": {"x": 1, "sample_id": 4}, "b": {"x": 2}}, range(2))
    assert collator(named.__getitems__(["a"]))[SAMPLE_IDS].tolist() == [4]
    with pytest.raises(SampleIdError, match="drew an index that is no position"):
        collator(named.__getitems__(["b"]))
