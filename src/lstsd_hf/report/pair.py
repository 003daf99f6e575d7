"""Two runs on the same samples, judged by the same labels."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..store.manifest import shortened
from .measures import Measures, measure
from .run import Run

Array = npt.NDArray[Any]


class Pair(NamedTuple):
    """Two runs on the samples that both have predicted in their last epochs, with the labels of the second.

    Attributes:
        runs: The two, with the same ids and labels.
        measures: Their measures.
        gain: (N,) by how much B is better. For classes: its confidence minus A's, from -1 to 1. For scores: A's mean
            absolute error minus B's.
        right: For each run (N,): 1 where the last epoch predicts the label, else 0; empty for a regression.
    """

    runs: tuple[Run, Run]
    measures: tuple[Measures, Measures]
    gain: Array
    right: tuple[Array, ...]


def pair_of(a: Run, b: Run) -> tuple[Pair, list[str]]:
    """Restricts two runs to the same samples and labels; and sentences about how they differ.

    Raises:
        StoreError: no sample has a finite prediction.
        ValueError: the runs are of different tasks, or have no sample in common.
    """
    if len(a.classes) != len(b.classes):
        kinds = [f"{len(run.classes)} classes" if run.classes else "scores" for run in (a, b)]
        raise ValueError(f"{a.name} predicts {kinds[0]}, {b.name} {kinds[1]}: expected two runs of one task.")
    if a.classes != b.classes and sorted(a.classes) == sorted(b.classes):
        raise ValueError(
            f"{a.name} and {b.name} have the same classes in another order, {shortened(list(a.classes))} and "
            f"{shortened(list(b.classes))}: expected one order. Train them with the same id2label."
        )
    ids, at_a, at_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    if not len(ids):
        raise ValueError(f"{a.name} and {b.name} have no sample id in common: expected two runs on the same samples.")
    others = int((a.labels[at_a] != b.labels[at_b]).sum())
    same = a.epochs == b.epochs

    both = _predicted(a, ids) & _predicted(b, ids)
    if not both.any():
        raise ValueError(f"{a.name} and {b.name} have no sample that the last epochs of both have predicted.")
    runs = [replace(run, ids=ids[both], labels=b.labels[at_b][both]) for run in (a, b)]
    # The mean that a run kept holds for its own labels, and for all its epochs.
    found = [measure(run, with_kept_mean=same and not others) for run in runs]
    if a.is_regression:
        gain = found[0].samples["mean_absolute_error"] - found[1].samples["mean_absolute_error"]
        right: list[Array] = []
    else:
        gain = found[1].samples["confidence"] - found[0].samples["confidence"]
        right = [(measures.samples["prediction"] == measures.samples["label"]).astype(np.int64) for measures in found]
    notes = []
    if not same:
        notes.append(
            f"A has the epochs {_listed(a)}, B {_listed(b)}. Means are over these: more epochs, or later ones, look "
            "better on training samples."
        )
    if others:
        notes.append(
            f"Samples with another label in B than in A: {others:,}. Both runs are judged by the labels of B."
        )
    if _texts_differ(a, b):
        notes.append(
            "A and B were trained on different sets of texts. If their files have a column of ids (sample_id_column), "
            "samples with one id are compared. Without it a sample is known by its row number: if rows were dropped "
            "or moved between the two files, samples here may be of different texts."
        )
    for name, run in (("A", a), ("B", b)):
        missing = len(run.ids) - int(both.sum())
        if missing:
            notes.append(f"Samples of {name} that are not here, because not both runs predicted them: {missing:,}.")
    return Pair((runs[0], runs[1]), (found[0], found[1]), gain, tuple(right)), notes


def _texts_differ(a: Run, b: Run) -> bool:
    """Whether a column of texts that both know, as after `lstsd train` on files, is not the same, sample by sample."""
    texts = a.store.texts, b.store.texts
    return any(texts[0][name] != texts[1][name] for name in texts[0].keys() & texts[1].keys())


def _predicted(run: Run, ids: Array) -> Array:
    """(n,) bool: whether the last epoch has a prediction for a sample."""
    last = run.epochs[-1:]
    return np.concatenate([~np.isnan(run.logits(ids[chunk], last)).any(axis=(0, 2)) for chunk in run.chunks(len(ids))])


def _listed(run: Run) -> str:
    """The epochs of a run, in few words."""
    first, last = run.epochs[0], run.epochs[-1]
    whole = last - first + 1 == len(run.epochs) > 2
    return f"{first} to {last}" if whole else ", ".join(map(str, run.epochs))
