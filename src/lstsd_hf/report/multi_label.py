"""A multi-label head's run, label by label: each is a yes or no of its own, with a probability of its own.

As for one label, all epochs count the same: a model that has learnt wrong labels by heart was against them early on.
cleanlab's scores of multi-label data, on one epoch, are the same: see the tests.
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
LOOKS = ("right", "added", "missing")  # what a label may look like: a yes that is against the model was added


@dataclass(frozen=True)
class LabelRun(Run):
    """What `Run` says of samples holds here of single labels, two classes each: no and yes.

    The C labels of the i-th sample are numbered from C * i on. It has all of them, or some.

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
        """What the C labels are called."""
        return self.run.classes

    @property
    def about(self) -> Array:
        """(N,): which of the C labels each one is."""
        return self.ids % len(self.names)

    def logits(self, ids: Array, epochs: Sequence[int] | None = None) -> Array:
        """(E, n, 2) of (n,) labels, so that the softmax is the sigmoid of what was recorded."""
        samples, place = np.unique(ids // len(self.names), return_inverse=True)
        half = self.run.logits(self.run.ids[samples], epochs)[:, place, ids % len(self.names)] / 2
        return np.stack([-half, half], axis=2)

    def mean_of_all_epochs(self) -> Array | None:
        return None  # a run keeps none of labels


def label_run(run: Run) -> LabelRun:
    """All labels of a multi-label head's run."""
    return _part(run, np.arange(run.labels.size))


def _part(run: Run, numbers: Array) -> LabelRun:
    return LabelRun(run.name, run.store, run.epochs, numbers, run.labels.ravel()[numbers], NO_OR_YES, run.log, run=run)


def suspects(every: LabelRun, measures: Measures) -> tuple[LabelRun, Measures]:
    """The labels that a page is about, and their measures: all that look wrong, and of other samples the worst one."""
    shape = every.run.labels.shape
    chosen = measures.samples["looks_wrong"].reshape(shape).copy()
    worst = np.nan_to_num(measures.samples["noise_score"].reshape(shape), nan=-1).argmax(axis=1)
    chosen[np.arange(len(chosen)), worst] = True
    numbers = np.flatnonzero(chosen)
    samples = {name: values[numbers] for name, values in measures.samples.items()}
    samples["noise_rank"] = dynamics.ranks(samples["noise_score"])
    return _part(every.run, numbers), Measures(samples, measures.epochs)


def looks(given: Array, suggested: Array) -> Array:
    """(n,): which of `LOOKS` holds of labels, from 0 for no and 1 for yes."""
    return np.where(given == suggested, 0, np.where(given == 1, 1, 2))


def measure_labels(run: Run) -> Measures:
    """As `by_sample`. Raises StoreError where no sample has a finite prediction."""
    return by_sample(run, measure(label_run(run)))


def by_sample(run: Run, measures: Measures) -> Measures:
    """What holds of N samples with C labels each, by the measures of all labels:

    - `noise_score_by_label` (N, C), from 0 to 1: 1 less the mean over epochs of the probability of what the label
      says; above 0.5 the model was against it.
    - `noise_score` (N,): the highest of these. `looks_wrong`: whether it is above 0.5. `noise_rank`.
    - `suggested_label` (N, C): what the mean over epochs says of each label.
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
    """Probabilities from logits, without a warning where they are large."""
    return np.exp(-np.logaddexp(0, -logits))


def losses(logits: Array, labels: Array) -> Array:
    """(E, n): the mean over labels of the binary cross-entropy, in nats; logits (E, n, C), labels (n, C)."""
    found: Array = np.logaddexp(0, np.where(labels, -logits, logits)).mean(axis=2)
    return found
