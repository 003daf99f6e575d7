"""The logits store against a dictionary, and against crashes and damage."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lstsd_hf import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError
from toys import as_first_written

SAMPLES = 12


def make(path: Path, row_shape: tuple[int, ...] = (3,), dtype: str = "float32") -> LogitsStore:
    return LogitsStore.create(path, SAMPLES, row_shape, dtype, "toy")


def batch(ids: Iterable[int], value: float, row_shape: tuple[int, ...] = (3,)) -> tuple[np.ndarray, np.ndarray]:
    ids = np.asarray(list(ids))
    return ids, value + np.arange(len(ids) * int(np.prod(row_shape)), dtype=np.float32).reshape(-1, *row_shape)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("row_shape", [(1,), (3,), (4, 2)])
def test_a_sealed_epoch_is_a_plain_npy_file(tmp_path, dtype, row_shape):
    store = make(tmp_path / "s", row_shape, dtype)
    ids, rows = batch([7, 2, 9], 0.5, row_shape)
    store.record(0, ids, rows)
    store.seal(0)
    file = np.load(tmp_path / "s" / "epoch-0000.npy", mmap_mode="r")
    assert file.shape == (SAMPLES, *row_shape)
    assert file.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(file[ids], rows.astype(dtype))
    assert np.isnan(np.delete(file, ids, axis=0)).all()
    np.testing.assert_array_equal(store.read(0, ids[::-1]), rows[::-1].astype(dtype))
    assert not os.access(tmp_path / "s" / "epoch-0000.npy", os.W_OK) or os.geteuid() == 0
    assert os.listdir(tmp_path / "s" / "open") == []


def test_the_first_record_wins_by_step_then_rank_then_order(tmp_path):
    store = make(tmp_path / "s")
    for step, rank, value in [(2, 0, 100), (1, 1, 200), (1, 0, 300), (1, 0, 400)]:
        store.record(0, *batch([4], value), step=step, rank=rank)
    store.record(0, *batch([5, 5], 0), step=0)
    store.seal(0)
    assert store.read(0, [4])[0, 0] == 300
    assert store.read(0, [5])[0, 0] == 0


def test_sealing_twice_and_recording_late(tmp_path):
    store = make(tmp_path / "s")
    store.record(3, *batch([1], 1))
    store.seal(3)
    before = (tmp_path / "s" / "epoch-0003.npy").read_bytes()
    store.seal(3)
    assert (tmp_path / "s" / "epoch-0003.npy").read_bytes() == before
    assert store.sealed_epochs == [3]
    with pytest.raises(StoreError, match=r"Epoch 3 .* is sealed"):
        store.record(3, *batch([1], 2))
    with pytest.raises(StoreError, match=r"Epoch 0 .* is not sealed; sealed are \[3\]"):
        store.read(0, [1])


def test_values_beyond_float16_are_clipped_and_counted_and_infinite_rows_left_out(tmp_path):
    store = make(tmp_path / "s", dtype="float16")
    rows = [[1e6, 0, -1e6], [np.inf, 0, 0], [np.nan, 1, 1], [1, 2, 3]]
    store.record(0, [0, 1, 2, 3], np.array(rows, np.float32))
    with pytest.warns(UserWarning, match="Epoch 0: 2 logits lay beyond the range of float16"):
        store.seal(0)
    found = store.read(0, [0, 1, 2, 3])
    np.testing.assert_array_equal(found[0], [65504, 0, -65504])
    assert np.isnan(found[1:3]).all()
    np.testing.assert_array_equal(found[3], [1, 2, 3])


def test_dropped_epochs_are_gone(tmp_path):
    store = make(tmp_path / "s")
    for epoch in range(3):
        store.record(epoch, *batch([0], epoch))
        store.seal(epoch)
    store.read(1, [0])
    store.drop(1)
    store.drop(1)
    assert store.sealed_epochs == [0, 2]
    assert not (tmp_path / "s" / "epoch-0001.npy").exists()
    with pytest.raises(StoreError, match="is not sealed"):
        store.read(1, [0])


def test_labels_are_kept(tmp_path):
    store = make(tmp_path / "s")
    store.write_labels(np.arange(SAMPLES))
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "labels.npy"), np.arange(SAMPLES))
    store.verify()
    with pytest.raises(StoreMismatchError, match="3 labels for a store of 12"):
        store.write_labels([1, 2, 3])


@pytest.mark.parametrize(
    ("ids", "rows", "error", "message"),
    [
        ([-1], np.zeros((1, 3)), StoreError, r"\[-1\] are outside .* expected 0 to 11"),
        ([3, 12], np.zeros((2, 3)), StoreError, r"\[12\] are outside"),
        ([0.5], np.zeros((1, 3)), StoreError, "float64: expected integers"),
        ([[1]], np.zeros((1, 3)), StoreError, r"shape \(1, 1\)"),
        ([1], np.zeros((1, 2)), StoreMismatchError, r"shape \(1, 2\) for 1 sample ids .* expected \(1, 3\)"),
        ([1, 2], np.zeros((1, 3)), StoreMismatchError, r"for 2 sample ids"),
    ],
)
def test_bad_records_are_refused_and_leave_nothing(tmp_path, ids, rows, error, message):
    store = make(tmp_path / "s")
    with pytest.raises(error, match=message):
        store.record(0, ids, rows)
    store.seal(0)
    assert np.isnan(store.read(0, range(SAMPLES))).all()


def test_what_cannot_be_created_or_opened_says_why(tmp_path):
    make(tmp_path / "s")
    with pytest.raises(StoreError, match="is not empty: expected a new folder"):
        make(tmp_path / "s")
    with pytest.raises(ValueError, match="dtype='int8': expected one of 'float16', 'float32'"):
        make(tmp_path / "t", dtype="int8")
    with pytest.raises(ValueError, match="sizes of at least 1"):
        LogitsStore.create(tmp_path / "t", 0, (3,), "float16", "toy")
    with pytest.raises(StoreError, match="holds no logits store"):
        LogitsStore.open(tmp_path / "nothing")


def test_another_data_set_is_not_mixed_in(tmp_path):
    store = make(tmp_path / "s")
    mine = {"num_samples": SAMPLES, "row_shape": (3,), "dtype": "float32", "fingerprint": "toy"}
    store.expect(**mine)
    for name, value in {"num_samples": 13, "row_shape": (2,), "dtype": "float16", "fingerprint": "other"}.items():
        with pytest.raises(StoreMismatchError, match=f"expected {name}") as caught:
            store.expect(**mine | {name: value})
        assert repr(value) in str(caught.value)
        assert repr(mine[name]) in str(caught.value)


def test_a_store_needs_neither_torch_nor_transformers():
    code = "import sys, lstsd_hf; lstsd_hf.LogitsStore; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_full_disk_loses_no_earlier_record(tmp_path):
    """A limit on the file size stands in for a full disk: both cut a write short."""
    code = f"""
import resource, signal, numpy as np
from lstsd_hf import LogitsStore, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LogitsStore.create({str(tmp_path / "s")!r}, 1000, (10,), "float32", "toy")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
done = 0
try:
    for start in range(0, 1000, 10):
        store.record(0, np.arange(start, start + 10), np.full((10, 10), start))
        done += 10
except StoreError as error:
    assert "could not be written" in str(error) and "Free some space" in str(error), error
else:
    raise SystemExit("the limit was not felt")
try:
    store.seal(0)
except StoreError as error:
    assert "epoch-0000.npy could not be written" in str(error), error
else:
    raise SystemExit("sealed 40 kB into 10")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store = LogitsStore.open({str(tmp_path / "s")!r})
store.seal(0)
found = store.read(0, np.arange(1000))
assert 0 < done < 1000
assert (found[:done, 0] == np.arange(done) // 10 * 10).all() and np.isnan(found[done:]).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_store_of_the_first_version_is_read(tmp_path):
    store = small_store(tmp_path / "s")
    expected = store.read(0, range(SAMPLES))
    store.write_statistic("margin", 0, np.zeros((SAMPLES, 2), np.float32))
    as_first_written(tmp_path / "s")
    assert "statistics" not in (tmp_path / "s" / "store.json").read_text()
    found = LogitsStore.open(tmp_path / "s")
    found.verify()
    assert (found.sealed_epochs, found.open_epochs) == ([0], [1])
    assert found.read_statistic("margin") is None
    np.testing.assert_array_equal(found.read(0, range(SAMPLES)), expected)
    np.testing.assert_array_equal(found.read_labels(), np.arange(SAMPLES))
    found.seal(1)
    found.write_statistic("margin", 1, np.ones((SAMPLES, 2), np.float32))
    found.verify()
    assert LogitsStore.open(tmp_path / "s").read_statistic("margin")[0] == 1


# ---- damage


def small_store(path: Path) -> LogitsStore:
    store = make(path)
    store.write_labels(np.arange(SAMPLES))
    store.record(0, *batch(range(SAMPLES), 0))
    store.seal(0)
    store.record(1, *batch([1, 2], 5), step=1)
    store.record(1, *batch([3], 6), step=2)
    store.close()
    return store


@pytest.mark.parametrize("name", ["store.json", "labels.npy", "epoch-0000.npy", "open/epoch-0001.rank-00000.journal"])
def test_no_flipped_bit_goes_unnoticed(tmp_path, name):
    small_store(tmp_path / "s")
    file = tmp_path / "s" / name
    original = file.read_bytes()
    meaning = json.loads(original) if name == "store.json" else None
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << position % 7
        file.chmod(0o644)
        file.write_bytes(damaged)
        if meaning is not None and _same_json(damaged, meaning):
            continue  # only white space changed
        with pytest.raises(StoreError) as caught:
            LogitsStore.open(tmp_path / "s").verify()
        assert file.name in str(caught.value), position


def _same_json(text: bytes, meaning: object) -> bool:
    try:
        return json.loads(text) == meaning
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["store.json", "labels.npy", "epoch-0000.npy"])
def test_no_missing_byte_goes_unnoticed(tmp_path, name):
    small_store(tmp_path / "s")
    file = tmp_path / "s" / name
    original = file.read_bytes().rstrip()
    for size in range(0, len(original), 7):
        file.chmod(0o644)
        file.write_bytes(original[:size])
        with pytest.raises(StoreCorruptionError, match=file.name):
            LogitsStore.open(tmp_path / "s").verify()
    file.unlink()
    with pytest.raises(StoreError, match=file.name):
        LogitsStore.open(tmp_path / "s").verify()


def test_a_cut_off_sealed_file_is_refused_when_it_is_read(tmp_path):
    small_store(tmp_path / "s")
    file = tmp_path / "s" / "epoch-0000.npy"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(StoreCorruptionError, match=r"epoch-0000\.npy is missing or damaged"):
        LogitsStore.open(tmp_path / "s").read(0, [1])


def test_a_cut_off_journal_keeps_its_complete_blocks(tmp_path):
    """Cuts the journal at every byte, as a crash in the middle of an append would; then the run continues."""
    small_store(tmp_path / "s")
    journal = tmp_path / "s" / "open" / "epoch-0001.rank-00000.journal"
    original = journal.read_bytes()
    block = 40 + 8 + 12  # head, an id, three float32
    for size in range(len(original) + 1):
        store = LogitsStore.open(tmp_path / "s")
        journal.write_bytes(original[:size])
        store.record(1, *batch([9], 7), step=3)
        store.seal(1)
        found = store.read(1, [1, 2, 3, 9])
        first, second = size >= len(original) - block, size >= len(original)
        assert np.isnan(found[:, 0]).tolist() == [not first, not first, not second, False], size
        assert found[3, 0] == 7
        store.drop(1)


def test_another_version_and_another_format_are_named(tmp_path):
    small_store(tmp_path / "s")
    file = tmp_path / "s" / "store.json"
    manifest = json.loads(file.read_text())
    for change, message in [
        ({"version": 2}, r"store\.json is of version 2: expected 1"),
        ({"format": "else"}, "no manifest of a logits store"),
    ]:
        file.write_text(json.dumps(manifest | change))
        with pytest.raises(StoreCorruptionError, match=message):
            LogitsStore.open(tmp_path / "s")


def test_nothing_is_ever_unpickled(tmp_path):
    small_store(tmp_path / "s")
    file = tmp_path / "s" / "epoch-0000.npy"
    file.chmod(0o644)
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert pickle.dumps({"a": 1})[:2] in file.read_bytes()
    with pytest.raises(StoreCorruptionError, match=r"epoch-0000\.npy"):
        LogitsStore.open(tmp_path / "s").read(0, [0])


# ---- any sequence of events, against a dictionary


class AnySequence(RuleBasedStateMachine):
    """Records, seals, crashes and reopens in any order; the store must agree with a dictionary."""

    @initialize(dtype=st.sampled_from(["float16", "float32"]))
    def begin(self, dtype):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "s"
        self.store = make(self.path, dtype=dtype)
        self.dtype = dtype
        self.open: dict[int, dict[int, tuple[tuple[int, int, int], np.ndarray]]] = {}
        self.sealed: dict[int, np.ndarray] = {}
        self.order = 0
        self.torn: set[Path] = set()

    @rule(
        epoch=st.integers(0, 2),
        ids=st.lists(st.integers(0, SAMPLES - 1), min_size=1, max_size=5),
        step=st.integers(0, 3),
        rank=st.integers(0, 1),
        value=st.floats(-1e3, 1e3, width=16),
    )
    def record(self, epoch, ids, step, rank, value):
        if epoch in self.sealed:
            with pytest.raises(StoreError):
                self.store.record(epoch, *batch(ids, value), step=step, rank=rank)
            return
        ids, rows = batch(ids, value)
        self.store.record(epoch, ids, rows, step=step, rank=rank)
        self.torn.discard(self.path / "open" / f"epoch-{epoch:04d}.rank-{rank:05d}.journal")
        known = self.open.setdefault(epoch, {})
        for sample_id, row in zip(ids.tolist(), rows, strict=True):
            key = (step, rank, self.order)
            self.order += 1
            if sample_id not in known or key < known[sample_id][0]:
                known[sample_id] = (key, row)

    @rule(epoch=st.integers(0, 2))
    def seal(self, epoch):
        self.store.seal(epoch)
        if epoch not in self.sealed:
            expected = np.full((SAMPLES, 3), np.nan, self.dtype)
            for sample_id, (_, row) in self.open.pop(epoch, {}).items():
                expected[sample_id] = row
            self.sealed[epoch] = expected

    @rule(epoch=st.integers(0, 2))
    def drop(self, epoch):
        self.store.drop(epoch)
        self.sealed.pop(epoch, None)

    @rule(torn=st.integers(0, 53))
    def crash_and_reopen(self, torn):
        self.store = LogitsStore.open(self.path)
        for journal in set((self.path / "open").iterdir()) - self.torn:  # the start of an unfinished block
            with journal.open("ab") as file:
                file.write(journal.read_bytes()[32 : 32 + torn])
            self.torn.add(journal)

    @invariant()
    def agrees_with_the_dictionary(self):
        if not hasattr(self, "store"):
            return
        assert LogitsStore.open(self.path).sealed_epochs == sorted(self.sealed)
        for epoch, expected in self.sealed.items():
            np.testing.assert_array_equal(self.store.read(epoch, np.arange(SAMPLES)), expected)

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()


AnySequence.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnySequence = AnySequence.TestCase


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"step": 2**63}, ValueError, "step=9223372036854775808: expected an integer of 64 bits"),
        ({"step": 1.5}, ValueError, "step=1.5: expected an integer of 64 bits"),
        ({"logits": np.ones((2, 3), complex)}, StoreMismatchError, "Logits of type complex128: expected real numbers"),
        ({"logits": np.full((2, 3), "1")}, StoreMismatchError, "Logits of type <U1: expected real numbers"),
        ({"counts": [1, 1]}, StoreMismatchError, "Counts do not fit .* expected one row for each sample id"),
    ],
)
def test_what_cannot_be_recorded_is_said(tmp_path, changes, error, message):
    store = make(tmp_path / "s")
    with pytest.raises(error, match=message):
        store.record(**{"epoch": 0, "sample_ids": [0, 1], "logits": np.ones((2, 3))} | changes)
    store.record(0, [0, 1], np.ones((2, 3), bool), step=-1)
    store.seal(0)
    assert store.read(0, [0, 1, 2])[:, 0].tolist()[:2] == [1, 1]
