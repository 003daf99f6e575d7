"""Samples with a variable number of rows, written through journals and read back, against plain dictionaries."""

import numpy as np
import pytest

from lstsd_hf.store import StoreCorruptionError
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
    layout = RaggedRows(N, (3,), "float32")
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
    layout = RaggedRows(N, (3,), "float32")
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
    layout = TopKRows(N, 4, vocabulary, "float16")
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
    layout = RaggedRows(N, (2,), "float16")
    values = np.array([[1e6, 0], [np.nan, 1], [np.inf, 2]], np.float32)
    paths, clipped = seal(tmp_path, layout, [journal(tmp_path, layout, 0, [(0, {0: {"values": values}})])])
    assert clipped == 1
    found = np.load(paths["values"])
    assert found[0].tolist() == [65504, 0]
    assert np.isnan(found[1:]).all()


def test_an_epoch_without_rows(tmp_path):
    layout = RaggedRows(N, (2,), "float16")
    paths, _ = seal(tmp_path, layout, [])
    sealed = layout.open_sealed(paths)
    assert layout.read(sealed, np.arange(N)).counts.tolist() == [0] * N


@pytest.mark.parametrize("part", ["values", "offsets"])
def test_a_file_that_is_cut_off_is_named(tmp_path, part):
    layout = RaggedRows(N, (3,), "float16")
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
