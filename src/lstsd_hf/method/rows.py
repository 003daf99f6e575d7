"""Where the rows of a batch's samples are in a model's output, for heads with more than one row for each sample.

A row is identified by its position in the flattened (B x L) grid of a batch. The positions come from the batch's own
labels or mask, so the length and side of the padding and the order of the samples make no difference.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

IGNORED = -100


class RowIndex(NamedTuple):
    """The R rows of a batch of B samples, sample by sample and in order within each.

    Attributes:
        positions: int64 (R,), ascending within a sample: the row's position in the flattened (B x L) grid.
        counts: int64 (B,): how many rows each sample has.
    """

    positions: torch.Tensor
    counts: torch.Tensor

    @property
    def samples(self) -> torch.Tensor:
        """int64 (R,): which sample, from 0 to B - 1, each row belongs to."""
        samples = torch.arange(len(self.counts), device=self.counts.device)
        # Without output_size this would wait for the device.
        return samples.repeat_interleave(self.counts, output_size=len(self.positions))


def _of_mask(mask: torch.Tensor) -> RowIndex:
    """The rows at the true positions of a (B, L) mask of booleans."""
    return RowIndex(mask.flatten().nonzero()[:, 0], mask.sum(dim=1))


def labelled_tokens(labels: torch.Tensor) -> RowIndex:
    """A row for each of (B, L) labels that is not -100: for taggers, and language models that do not shift labels."""
    return _of_mask(labels != IGNORED)


def predicted_tokens(batch: Mapping[str, Any], samples: int) -> RowIndex:
    """A row for each token that a causal language model predicts: position t predicts the label at t + 1.

    Args:
        batch: "labels" (B, L), or "shift_labels", which are at the position that predicts them. A padding-free batch
            is one sequence (1, L) of several samples; its "position_ids" start again from 0 at each sample.
        samples: B, the number of sample ids.

    Raises:
        ValueError: there are neither B sequences, nor one padding-free sequence with B starts of position_ids.
    """
    if "shift_labels" in batch:
        mask = batch["shift_labels"] != IGNORED
    else:
        mask = torch.zeros_like(batch["labels"], dtype=torch.bool)
        mask[:, :-1] = batch["labels"][:, 1:] != IGNORED
    attended = batch.get("attention_mask")
    if attended is not None and attended.shape == mask.shape:
        # Left padding would predict a sample's first token, but only in batches that have padding.
        mask &= attended != 0
    if len(mask) == samples:
        return _of_mask(mask)
    starts = (batch["position_ids"][0] == 0) if "position_ids" in batch else torch.ones(0, dtype=torch.bool)
    if len(mask) != 1 or int(starts.sum()) != samples:
        raise ValueError(
            f"The batch has {len(mask)} sequences and {int(starts.sum())} starts of position_ids, for {samples} "
            "samples: expected a sequence for each sample, or a padding-free batch in which position_ids start from 0 "
            "with each sample. Turn packing off: it joins samples, and their ids are lost."
        )
    # The last token of a sample does not predict the first token of the next one.
    mask[0, :-1] &= ~starts[1:]
    positions = mask[0].nonzero()[:, 0]
    owner = starts.cumsum(dim=0)[positions] - 1
    return RowIndex(positions, torch.bincount(owner, minlength=samples))


def own_positions(attention_mask: torch.Tensor) -> RowIndex:
    """A row for each position of a feature that is not padding, (B, L): start and end scores of question answering."""
    return _of_mask(attention_mask != 0)
