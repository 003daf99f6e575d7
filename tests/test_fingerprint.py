"""The fingerprint of a training set: equal for equal rows, different for one different value."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from lstsd_hf import add_sample_ids
from lstsd_hf.training.fingerprint import fingerprint
from lstsd_hf.training.training_set import inspect_training_set
from toys import rows


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


def test_a_column_of_empty_dictionaries_is_read():
    one, other = (datasets.Dataset.from_list([{"label": label, "meta": {}}] * 3) for label in (0, 1))
    assert print_of(one) != print_of(other)


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


def test_records_without_fields_are_hashed():
    table = pa.table({"meta": [{}, {}], "text": ["a", "b"]})
    assert fingerprint(datasets.Dataset(table), np.arange(2), table.column_names).startswith("2 rows, xxh3 ")
