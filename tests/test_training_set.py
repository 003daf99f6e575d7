"""What is read from a training set, and what is refused, before the first step."""

import datasets
import numpy as np
import pytest

from lstsd_hf import add_sample_ids
from lstsd_hf.training.sample_ids import SampleIdError
from lstsd_hf.training.training_set import inspect_training_set
from toys import rows


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
    np.testing.assert_array_equal(found.ids, [8, 2, 5])
    np.testing.assert_array_equal(found.labels, data["label"][:])


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


def test_labels_that_are_true_or_false_are_two_classes():
    data = rows(12)
    truths = [label > 0 for label in data["label"]]
    found = inspect_training_set(data.remove_columns("label").add_column("label", truths), "sample_id", None)
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == truths
