"""A multi-label head's run, label by label: each label is a yes or no with its own probability.

As with one label, all epochs count the same: a model that has learnt wrong labels by heart was against them early on.
On one epoch, the scores are the same as cleanlab's for multi-label data: see the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from .measures import Measures, measure
from .run import Run

Array = npt.NDArray[Any]

NO_OR_YES = ("no", "yes")
LOOKS = ("right", "added", "missing")  # how a label looks: a yes looks added if the model says no


@dataclass(frozen=True)
class LabelRun(Run):
    """A run of single labels: what `Run` says of samples holds here for labels, with two classes each, no and yes.

    The C labels of the i-th sample are numbered from C * i on. The run has all labels, or some.

    Attributes:
        run: The run of samples with several labels each.
    """

    run: Run
    unit: ClassVar[str] = "label"

    @property
    def shown_ids(self) -> Array:
        return self.run.ids[self.ids // len(self.names)]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the C labels."""
        return self.run.classes

    @property
    def about(self) -> Array:
        """(N,): which of the C labels each row is."""
        return self.ids % len(self.names)

    def logits(self, ids: Array, epochs: Sequence[int] | None = None) -> Array:
        """(E, n, 2) logits of (n,) labels: their softmax is the sigmoid of the recorded logits."""
        samples, place = np.unique(ids // len(self.names), return_inverse=True)
        half = self.run.logits(self.run.ids[samples], epochs)[:, place, ids % len(self.names)] / 2
        return np.stack([-half, half], axis=2)

    def mean_of_all_epochs(self) -> Array | None:
        return None  # a run keeps no such mean for single labels


def label_run(run: Run) -> LabelRun:
    """All labels of a multi-label head's run."""
    return _part(run, np.arange(run.labels.size))


def _part(run: Run, numbers: Array) -> LabelRun:
    return LabelRun(run.name, run.store, run.epochs, numbers, run.labels.ravel()[numbers], NO_OR_YES, run.log, run=run)


def suspects(every: LabelRun, measures: Measures) -> tuple[LabelRun, Measures]:
    """The labels that a page lists, and their measures: all that look wrong, and each sample's most suspicious one."""
    shape = every.run.labels.shape
    chosen = measures.samples["looks_wrong"].reshape(shape).copy()
    worst = np.nan_to_num(measures.samples["noise_score"].reshape(shape), nan=-1).argmax(axis=1)
    chosen[np.arange(len(chosen)), worst] = True
    numbers = np.flatnonzero(chosen)
    samples = {name: values[numbers] for name, values in measures.samples.items()}
    samples["noise_rank"] = dynamics.ranks(samples["noise_score"])
    return _part(every.run, numbers), Measures(samples, measures.epochs)


def looks(given: Array, suggested: Array) -> Array:
    """(n,) indices into `LOOKS`, from the given and the suggested labels, 0 for no and 1 for yes."""
    return np.where(given == suggested, 0, np.where(given == 1, 1, 2))


def measure_labels(run: Run) -> Measures:
    """Measures a multi-label head's run as `by_sample`. Raises StoreError if no sample has a finite prediction."""
    return by_sample(run, measure(label_run(run)))


def by_sample(run: Run, measures: Measures) -> Measures:
    """The measures of N samples with C labels each, from the measures of all labels:

    - `noise_score_by_label` (N, C), from 0 to 1: 1 minus the mean over epochs of the given answer's probability; above
      0.5 the model was against it.
    - `noise_score` (N,): the highest of these. `looks_wrong`: whether it is above 0.5. `noise_rank`: 1 is worst.
    - `suggested_label` (N, C): the answer that is more probable on average over epochs.
    """
    scores = measures.samples["noise_score"].reshape(run.labels.shape)
    worst = scores.max(axis=1)
    samples = {
        "sample_id": run.ids,
        "label": run.labels,
        "noise_score": worst,
        "noise_rank": dynamics.ranks(worst),
        "looks_wrong": dynamics.flags(worst),
        "suggested_label": np.where(dynamics.flags(scores), 1 - run.labels, run.labels),
        "noise_score_by_label": scores,
    }
    return Measures(samples, {})


def sigmoid(logits: Array) -> Array:
    """Probabilities from logits, without overflow if they are large."""
    return np.exp(-np.logaddexp(0, -logits))


def losses(logits: Array, labels: Array) -> Array:
    """(E, n): the mean over labels of the binary cross-entropy, in nats; logits (E, n, C), labels (n, C)."""
    found: Array = np.logaddexp(0, np.where(labels, -logits, logits)).mean(axis=2)
    return found
