"""Samples with a variable number of rows, written through journals and read back, against plain dictionaries."""

import numpy as np
import pytest

from lstsd_hf.store import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError
from lstsd_hf.store.ids import SampleIndex
from lstsd_hf.store.journal import ID, Journal, JournalWriter, journal_head
from lstsd_hf.store.ragged import RaggedRows, Rows, TopKRows

N = 7


def journal(folder, layout, rank, blocks):
    """A journal of blocks (step, {sample: parts}), as the store writes it."""
    path = folder / f"rank-{rank}.journal"
    writer = JournalWriter(path, 0, journal_head(0, rank, layout.row_bytes))
    for step, samples in blocks:
        ids = np.repeat(list(samples), [len(parts["values"]) for parts in samples.values()]).astype(ID)
        joined = {name: np.concatenate([parts[name] for parts in samples.values()]) for name in layout.row.names}
        payload, clipped = layout.encode(joined)
        writer.append(step, len(ids), clipped, ids.tobytes(), payload)
    writer.close()
    return Journal(path, 0, rank, layout.row_bytes)


def seal(folder, layout, journals):
    paths = {name: folder / f"epoch-0000{suffix}" for name, suffix in layout.files.items()}
    clipped, checksums = layout.write_sealed(paths, journals)
    assert checksums.keys() == paths.keys()
    return paths, clipped


def tokens(*counts, seed=0, columns=3):
    rng = np.random.default_rng(seed)
    return [{"values": rng.normal(size=(count, columns)).astype(np.float32)} for count in counts]


@pytest.mark.parametrize("rows_at_once", [1 << 20, 30])
def test_rows_come_back_sample_by_sample(tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr("lstsd_hf.store.ragged.CHUNK_BYTES", rows_at_once)
    layout = RaggedRows(SampleIndex(N), (3,), "float32")
    a, b, c, d, e = tokens(4, 1, 2, 30, 3)
    first = journal(tmp_path, layout, 0, [(0, {5: a, 0: b}), (2, {3: d})])
    second = journal(tmp_path, layout, 1, [(0, {2: c}), (1, {5: e})])  # 5 again, at a later step
    paths, _ = seal(tmp_path, layout, [first, second])
    assert np.load(paths["offsets"]).tolist() == [0, 1, 1, 3, 33, 33, 37, 37]
    sealed = layout.open_sealed(paths)
    found = layout.read(sealed, np.array([5, 1, 3, 0, 2, 6]))
    assert found.counts.tolist() == [4, 0, 30, 1, 2, 0]
    expected = np.concatenate([part["values"] for part in (a, d, b, c)])
    np.testing.assert_array_equal(found.parts["values"], expected)


def test_a_sample_twice_in_one_batch_has_its_first_rows(tmp_path):
    layout = RaggedRows(SampleIndex(N), (3,), "float32")
    a, b = tokens(2, 3)
    between = tokens(1, seed=1)[0]
    path = tmp_path / "j"
    writer = JournalWriter(path, 0, journal_head(0, 0, layout.row_bytes))
    ids = np.array([4, 4, 1, 4, 4, 4], ID)
    payload, _ = layout.encode({"values": np.concatenate([a["values"], between["values"], b["values"]])})
    writer.append(0, 6, 0, ids.tobytes(), payload)
    writer.close()
    paths, _ = seal(tmp_path, layout, [Journal(path, 0, 0, layout.row_bytes)])
    found = layout.read(layout.open_sealed(paths), np.array([4]))
    np.testing.assert_array_equal(found.parts["values"], a["values"])


@pytest.mark.parametrize(("vocabulary", "dtype"), [(50_000, "<u2"), (1 << 16, "<u2"), (150_000, "<u4")])
def test_top_k_rows(tmp_path, vocabulary, dtype):
    rng = np.random.default_rng(0)
    layout = TopKRows(SampleIndex(N), (4,), "float16", vocabulary)
    samples = {
        sample: {
            "values": -rng.random((count, 4)).astype(np.float32),
            "classes": rng.integers(0, vocabulary, (count, 4)),
            "rest": -10 * rng.random(count).astype(np.float32),
        }
        for sample, count in ((6, 5), (1, 2))
    }
    paths, _ = seal(tmp_path, layout, [journal(tmp_path, layout, 0, [(0, samples)])])
    assert np.load(paths["classes"]).dtype == dtype
    assert np.load(paths["values"]).shape == (7, 4)
    assert np.load(paths["rest"]).shape == (7,)
    found = layout.read(layout.open_sealed(paths), np.array([6]))
    np.testing.assert_array_equal(found.parts["classes"], samples[6]["classes"])
    np.testing.assert_array_equal(found.parts["values"], samples[6]["values"].astype(np.float16))
    np.testing.assert_array_equal(found.parts["rest"], samples[6]["rest"].astype(np.float16))


def test_numbers_that_float16_does_not_hold(tmp_path):
    layout = RaggedRows(SampleIndex(N), (2,), "float16")
    values = np.array([[1e6, 0], [np.nan, 1], [np.inf, 2]], np.float32)
    paths, clipped = seal(tmp_path, layout, [journal(tmp_path, layout, 0, [(0, {0: {"values": values}})])])
    assert clipped == 1
    found = np.load(paths["values"])
    assert found[0].tolist() == [65504, 0]
    assert np.isnan(found[1:]).all()


def test_an_epoch_without_rows(tmp_path):
    layout = RaggedRows(SampleIndex(N), (2,), "float16")
    paths, _ = seal(tmp_path, layout, [])
    sealed = layout.open_sealed(paths)
    assert layout.read(sealed, np.arange(N)).counts.tolist() == [0] * N


@pytest.mark.parametrize("part", ["values", "offsets"])
def test_a_file_that_is_cut_off_is_named(tmp_path, part):
    layout = RaggedRows(SampleIndex(N), (3,), "float16")
    paths, _ = seal(tmp_path, layout, [journal(tmp_path, layout, 0, [(0, {2: tokens(9)[0]})])])
    whole = paths[part].read_bytes()
    paths[part].write_bytes(whole[:-8])
    with pytest.raises(StoreCorruptionError, match=paths[part].name):
        layout.open_sealed(paths)


def test_a_sample_with_another_number_of_rows_has_none():
    values = np.arange(12, dtype=np.float16).reshape(6, 2)
    rows = Rows({"values": values, "classes": np.arange(6, dtype=np.uint16)}, np.array([2, 3, 1]))
    assert rows.aligned(np.array([2, 3, 1]))["values"] is values
    found = rows.aligned(np.array([2, 1, 1]))
    np.testing.assert_array_equal(found["values"], [[0, 1], [2, 3], [np.nan] * 2, [10, 11]])
    assert found["classes"].tolist() == [0, 1, 0, 5]
    longer = rows.aligned(np.array([2, 5, 1]))
    assert np.isnan(longer["values"][2:7]).all()
    np.testing.assert_array_equal(longer["values"][7], [10, 11])


# ---- in a store


def ragged_store(path, **options):
    return LogitsStore.create(path, N, (2,), "float32", "mine", ragged=True, **options)


def test_a_store_of_ragged_rows(tmp_path):
    store = ragged_store(tmp_path / "s")
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    store.record(0, [5, 0, 3], rows, counts=[2, 3, 1])
    store.record(0, [3], rows[:2], counts=[2], step=1)  # a repeated sample keeps its first rows
    store.seal(0)
    store = LogitsStore.open(tmp_path / "s")
    store.verify()
    found = store.read_rows(0, [0, 1, 3])
    assert found.counts.tolist() == [3, 0, 1]
    np.testing.assert_array_equal(found.parts["values"], rows[[2, 3, 4, 5]])
    assert np.load(tmp_path / "s" / "epoch-0000.npy").shape == (6, 2)
    assert np.load(tmp_path / "s" / "epoch-0000.offsets.npy").tolist() == [0, 3, 3, 3, 4, 4, 6, 6]
    with pytest.raises(StoreError, match="use read_rows"):
        store.read(0, [0])
    copied = store.copy(tmp_path / "copy", {"epoch": 0})
    copied.verify()
    assert copied.read_rows(0, [5]).counts.tolist() == [2]
    store.drop(0)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"store.json", "open"}
    store.verify()


def test_a_store_of_the_largest_of_a_vocabulary(tmp_path):
    store = LogitsStore.create(tmp_path / "s", N, (2,), "float16", "mine", vocabulary=70_000)
    values, classes = np.log([[0.5, 0.25], [0.7, 0.1]]), [[69_999, 4], [3, 2]]
    store.record(0, [1, 4], values, counts=[1, 1], classes=classes, rest=np.log([0.25, 0.2]))
    store.seal(0)
    found = LogitsStore.open(tmp_path / "s").read_rows(0, [4, 1])
    assert found.parts["classes"].tolist() == classes[::-1]
    np.testing.assert_allclose(np.exp(found.parts["rest"]), [0.2, 0.25], rtol=1e-3)
    store.verify()


def test_far_apart_ids_have_ragged_rows_too(tmp_path):
    ids = [7, 10**18, 10**12]
    store = LogitsStore.create(tmp_path / "s", 10**18 + 1, (2,), "float32", "mine", ids, ragged=True)
    store.record(0, [10**18, 7], np.ones((3, 2)), counts=[1, 2])
    store.seal(0)
    assert store.read_rows(0, [7, 10**12, 10**18]).counts.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("logits", "counts"),
    [(np.ones((3, 2)), None), (np.ones((3, 5)), [2, 1]), (np.ones((3, 2)), [2, 2]), (np.ones((4, 2)), [2, 1])],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, logits, counts):
    store = ragged_store(tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="do not fit the store"):
        store.record(0, [0, 1], logits, counts=counts)


@pytest.mark.parametrize("name", ["epoch-0000.npy", "epoch-0000.offsets.npy"])
def test_a_flipped_byte_is_found(tmp_path, name):
    store = ragged_store(tmp_path / "s")
    store.record(0, [0], np.ones((2, 2)), counts=[2])
    store.seal(0)
    path = tmp_path / "s" / name
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorruptionError, match=name):
        store.verify()


# ---- the label of each row


def flat(store):
    found = store.read_row_labels()
    return found.labels.tolist(), found.offsets.tolist()


def test_labels_are_taken_from_the_first_epoch_of_each_sample(tmp_path):
    """Sample 3 is first seen in epoch 1, and sample 0 has no labels in epoch 0; epoch 2 adds nothing."""
    store = ragged_store(tmp_path / "s")
    assert store.read_row_labels() is None
    store.record(0, [5, 0, 2], np.ones((6, 2)), counts=[2, 3, 1], labels=[7, 8, -100, -100, -100, 9])
    store.record(0, [2], np.ones((1, 2)), counts=[1], labels=[1], step=1)  # a repeated sample keeps its first
    store.seal(0)
    assert flat(store) == ([9, 7, 8], [0, 0, 0, 1, 1, 1, 3, 3])
    before = (tmp_path / "s" / "labels.npy").stat().st_ino
    store.record(1, [3, 0, 5], np.ones((6, 2)), counts=[2, 3, 1], labels=[4, 5, 1, 2, 3, 6])
    store.seal(1)
    assert flat(store) == ([1, 2, 3, 9, 4, 5, 7, 8], [0, 3, 3, 4, 6, 6, 8, 8])
    after = (tmp_path / "s" / "labels.npy").stat().st_ino
    store.record(2, [3, 0], np.ones((2, 2)), counts=[1, 1], labels=[0, 0])
    store.seal(2)
    assert flat(LogitsStore.open(tmp_path / "s")) == ([1, 2, 3, 9, 4, 5, 7, 8], [0, 3, 3, 4, 6, 6, 8, 8])
    assert before != after == (tmp_path / "s" / "labels.npy").stat().st_ino
    assert store.read_labels() is None  # these are labels of whole samples
    store.verify()
    assert flat(store.copy(tmp_path / "copy", {})) == flat(store)


def test_labels_in_small_pieces_are_the_same(tmp_path, monkeypatch):
    stores = []
    for name, at_once in (("whole", 1 << 20), ("pieces", 30)):
        monkeypatch.setattr("lstsd_hf.store.ragged.CHUNK_BYTES", at_once)
        store = ragged_store(tmp_path / name)
        for epoch, ids in enumerate(([6, 1, 4], [0, 1, 2, 3, 4, 5, 6])):
            counts = [5 * i % 4 + 1 for i in ids]
            labels = np.concatenate([100 * i + np.arange(n) for i, n in zip(ids, counts, strict=True)])
            for rank, part in enumerate((slice(0, 2), slice(2, None))):
                rows = slice(sum(counts[:2])) if rank == 0 else slice(sum(counts[:2]), None)
                values = np.ones((len(labels[rows]), 2))
                store.record(epoch, ids[part], values, counts=counts[part], labels=labels[rows], rank=rank)
            store.seal(epoch)
        stores.append(flat(store))
    assert stores[0] == stores[1]
    assert stores[0][0] == [100 * i + n for i in range(N) for n in range(5 * i % 4 + 1)]


def test_corrected_labels_are_those_that_are_recorded_from_then_on(tmp_path):
    store = ragged_store(tmp_path / "s")
    store.record(0, [0, 1], np.ones((2, 2)), counts=[1, 1], labels=[5, 6])
    store.seal(0)
    store.record(1, [0], np.ones((1, 2)), counts=[1], labels=[5], step=7)
    store.relabel(None, None, "corrected", epoch=1, step=8)
    assert store.read_row_labels() is None
    store.verify()
    store.record(1, [1], np.ones((1, 2)), counts=[1], labels=[0], step=8)
    store.seal(1)
    assert flat(store) == ([0], [0, 0, 1, 1, 1, 1, 1, 1])
    store.record(2, [0], np.ones((1, 2)), counts=[1], labels=[3], step=9)
    store.seal(2)
    assert flat(store) == ([3, 0], [0, 1, 2, 2, 2, 2, 2, 2])


def test_a_crash_while_labels_are_added_leaves_a_sound_store(tmp_path, monkeypatch):
    store = ragged_store(tmp_path / "s")
    store.record(0, [0], np.ones((1, 2)), counts=[1], labels=[5])
    store.seal(0)
    store.record(1, [0, 1], np.ones((3, 2)), counts=[1, 2], labels=[5, 6, 7])

    def crash(*args):
        (tmp_path / "s" / "labels.npy").write_bytes(b"new, and named by no manifest")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lstsd_hf.store.ragged.RaggedRows.write_labels", crash)
        with pytest.raises(KeyboardInterrupt):
            store.seal(1)
    store = LogitsStore.open(tmp_path / "s")
    store.verify()
    assert (store.sealed_epochs, store.read_row_labels()) == ([0], None)
    store.seal(1)
    assert flat(store) == ([5, 6, 7], [0, 1, 3, 3, 3, 3, 3, 3])


@pytest.mark.parametrize("name", ["labels.npy", "labels.offsets.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "other"])
def test_damaged_labels_are_named(tmp_path, name, damage):
    store = ragged_store(tmp_path / "s")
    store.record(0, [0, 4], np.ones((3, 2)), counts=[2, 1], labels=[1, 2, 3])
    store.seal(0)
    path = tmp_path / "s" / name
    if damage == "flipped":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "gone":
        path.unlink()
    else:
        np.save(path, np.arange(5.0))
    with pytest.raises(StoreCorruptionError, match=name):
        LogitsStore.open(tmp_path / "s").verify()
    if damage != "flipped":
        with pytest.raises(StoreCorruptionError, match=name):
            LogitsStore.open(tmp_path / "s").read_row_labels()


def test_as_many_labels_as_rows_are_expected(tmp_path):
    store = ragged_store(tmp_path / "s")
    with pytest.raises(StoreMismatchError, match=r"Labels of shape \(2,\) for 3 rows do not fit"):
        store.record(0, [0], np.ones((3, 2)), counts=[3], labels=[1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [[1, 70_000]] * 3}, r"Classes from 1 to 70000 do not fit the store: expected 0 to 49999\."),
        ({"classes": [[1, 60_000]] * 3}, r"Classes from 1 to 60000"),
        ({"classes": [[1, -4]] * 3}, r"Classes from -4 to 1"),
        ({"classes": np.full((3, 2), 2**64 - 1, np.uint64)}, r"Classes from 18446744073709551615"),
        ({"classes": [[1.0, 2.0]] * 3}, r"Classes of type float64: expected integers"),
        (
            {"labels": [0, 1, 2**40]},
            r"Labels from 0 to 1099511627776 do not fit .* expected -2147483648 to 2147483647",
        ),
        ({"labels": [0, 1, -(2**31) - 1]}, r"Labels from -2147483649"),
        ({"labels": [0.0, 1.0, 2.0]}, r"Labels of type float64: expected integers"),
        ({"rest": np.ones(3, complex)}, r"Rest of type complex128: expected real numbers"),
        (
            {"counts": [2, -1]},
            r"Counts of shape \(2,\) and type int64 for 2 sample ids: expected an integer of at least 0",
        ),
        ({"counts": [2.0, 1.0]}, r"Counts of shape \(2,\) and type float64"),
        ({"counts": [3]}, r"Counts of shape \(1,\)"),
        ({"counts": None}, r"Rows without counts do not fit the store"),
        ({"logits": 1.0}, r"Logits of shape \(\) for 3 rows do not fit the store"),
        ({"sample_ids": [4, 4], "rest": np.ones(2)}, r"Rest of shape \(2,\) for 3 rows do not fit the store"),
    ],
)
def test_what_cannot_be_recorded_is_said(tmp_path, changes, message):
    store = LogitsStore.create(tmp_path / "s", 6, (2,), "float32", "toy", vocabulary=50_000)
    given = {"epoch": 0, "sample_ids": [0, 1], "logits": np.ones((3, 2)), "counts": [2, 1], "rest": np.ones(3)}
    given["classes"] = np.array([[1, 49_999]] * 3)
    with pytest.raises(StoreMismatchError, match=message):
        store.record(**given | changes)
    store.record(**given | {"labels": [2**31 - 1, -(2**31), 7]})
    store.seal(0)
    assert store.read_rows(0, [0, 1]).parts["classes"].tolist() == given["classes"].tolist()
    assert store.read_row_labels().labels.tolist() == [2**31 - 1, -(2**31), 7]
