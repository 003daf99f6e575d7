"""Sample ids: a permanent name for each row."""

import datasets
import pytest
import torch

from lstsd_hf import add_sample_ids
from toys import rows


def text(count: int = 10) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(count)]})


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


def test_an_empty_split_has_the_column_too():
    numbered = add_sample_ids(datasets.DatasetDict(train=text(4), test=text(4).select([])))
    assert numbered["test"].features == numbered["train"].features
    assert len(numbered["test"]) == 0


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
