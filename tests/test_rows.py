"""Which rows a batch has: its own labels, masks and starts decide, whatever the padding."""

import pytest
import torch

from lstsd_hf.method.rows import labelled_tokens, own_positions, predicted_tokens

NO = -100


def test_labelled_tokens_in_order():
    found = labelled_tokens(torch.tensor([[NO, 3, 4, NO], [NO, NO, NO, NO], [5, NO, NO, 6]]))
    assert found.positions.tolist() == [1, 2, 8, 11]
    assert found.counts.tolist() == [2, 0, 2]
    assert found.samples.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [4, 7])
def test_rows_are_the_same_whatever_the_padding(side, length):
    labels = torch.full((2, length), NO)
    for row, values in enumerate(([1, 2, 3], [4, 5])):
        place = slice(len(values)) if side == "right" else slice(length - len(values), None)
        labels[row, place] = torch.tensor(values)
    found = labelled_tokens(labels)
    assert labels.flatten()[found.positions].tolist() == [1, 2, 3, 4, 5]
    assert found.counts.tolist() == [3, 2]


def test_a_causal_model_predicts_the_next_token():
    labels = torch.tensor([[NO, 7, 8, 9], [1, 2, NO, NO]])
    found = predicted_tokens({"labels": labels}, 2)
    assert found.positions.tolist() == [0, 1, 2, 4]
    assert found.counts.tolist() == [3, 1]
    shifted = torch.tensor([[7, 8, 9, NO], [2, NO, NO, NO]])
    same = predicted_tokens({"labels": labels, "shift_labels": shifted}, 2)
    assert same.positions.tolist() == found.positions.tolist()


def test_padding_on_the_left_predicts_nothing():
    batch = {"labels": torch.tensor([[NO, NO, 7, 8], [1, 2, 3, 4]])}
    batch["attention_mask"] = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert predicted_tokens(batch, 2).positions.tolist() == [2, 4, 5, 6]


def test_a_padding_free_batch_is_told_apart_by_its_starts():
    """Three samples of 3, 1 and 2 tokens in one sequence: the last token of each predicts nothing."""
    batch = {
        "labels": torch.tensor([[NO, 5, 6, NO, NO, 8]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 0, 1]]),
    }
    found = predicted_tokens(batch, 3)
    assert found.positions.tolist() == [0, 1, 4]
    assert found.counts.tolist() == [2, 0, 1]
    unmasked = {**batch, "labels": torch.tensor([[4, 5, 6, 7, 9, 8]])}
    assert predicted_tokens(unmasked, 3).positions.tolist() == [0, 1, 4]


def test_packed_samples_are_refused():
    with pytest.raises(ValueError, match=r"1 sequences and 1 starts of position_ids, for 3 samples.*Turn packing off"):
        predicted_tokens({"labels": torch.ones(1, 6).long(), "position_ids": torch.arange(6)[None]}, 3)


def test_own_positions_leave_padding_out():
    assert own_positions(torch.tensor([[1, 1, 0], [0, 1, 1]])).positions.tolist() == [0, 1, 4, 5]
