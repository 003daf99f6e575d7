"""The parts of the loss in the log, summed on the device since the last one; and the copy of the log in the store."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from ..method.loss import TeacherTerms
from ..store import LogitsStore

# What is summed over samples for each teacher: trust times divergence, trust, agreement, presence, and whether the
# teacher's part of the loss is not finite although the base loss is.
_COLUMNS = 5
# The number of micro-batches that are summed at once. To sum each would take several small operations in every step.
_AT_ONCE = 64


class _Batch(NamedTuple):
    base_loss: torch.Tensor
    samples: int
    terms: TeacherTerms | None


class LossParts:
    """Sums of the loss's parts since the last log. A step does not read them, because that waits for the device."""

    def __init__(self) -> None:
        self._samples = 0
        self._base: torch.Tensor | None = None
        # float32 (_COLUMNS, T), by the names of the T teachers of a micro-batch.
        self._terms: dict[tuple[str, ...], torch.Tensor] = {}
        self._decides = True
        self._waiting: list[tuple[tuple[str, ...], _Batch]] = []  # not in the sums yet

    def add(
        self, base_loss: torch.Tensor, samples: int, teachers: tuple[str, ...], terms: TeacherTerms | None
    ) -> None:
        """Adds a micro-batch with the terms of the named teachers."""
        if terms is not None:
            terms = terms._replace(divergence=terms.divergence.detach())
        self._waiting.append((teachers, _Batch(base_loss.detach(), samples, terms)))
        if len(self._waiting) == _AT_ONCE:
            self._sum()

    def _sum(self) -> None:
        groups: dict[tuple[str, ...], list[_Batch]] = {}
        for teachers, batch in self._waiting:
            groups.setdefault(teachers, []).append(batch)
        self._waiting = []
        for teachers, batches in groups.items():
            base = torch.cat([batch.base_loss.float().expand(batch.samples) for batch in batches])  # (samples,)
            self._samples += len(base)
            self._base = base.sum() if self._base is None else self._base + base.sum()
            if teachers:
                sums = self._sums([batch.terms for batch in batches if batch.terms is not None], base)
                self._terms[teachers] = self._terms[teachers] + sums if teachers in self._terms else sums

    def _sums(self, terms: list[TeacherTerms], base: torch.Tensor) -> torch.Tensor:
        """(_COLUMNS, T): the sums over n samples with the same T teachers; `base` holds their base losses, (n,)."""
        present = torch.cat([batch.present for batch in terms], dim=1)
        trust = torch.cat([batch.trust for batch in terms], dim=1)
        divergence = torch.cat([batch.divergence for batch in terms], dim=1)
        agreements = [batch.agreement for batch in terms if batch.agreement is not None]
        self._decides = bool(agreements)
        part = trust * divergence
        damaged = (~part.isfinite() & base.isfinite()).float()
        agreement = torch.cat(agreements, dim=1) if agreements else present
        return torch.stack([part, trust, agreement, present, damaged]).sum(dim=2)

    def totals(self, accelerator: Accelerator) -> dict[str, Any]:
        """The sums over all processes, as plain values for a checkpoint; waits for the device.

        Raises:
            FloatingPointError: a teacher's part of the loss was not finite in a micro-batch whose base loss was.
        """
        self._sum()
        if self._base is None:
            return {}
        parts = [self._base.new_full((), self._samples), self._base, *(s.flatten() for s in self._terms.values())]
        samples, base, *rest = accelerator.reduce(torch.hstack(parts), "sum").tolist()
        if not samples:  # no token in these micro-batches has a label
            return {}
        terms = []
        for teachers in self._terms:
            size = _COLUMNS * len(teachers)
            sums = np.reshape(rest[:size], (_COLUMNS, -1))
            del rest[:size]
            _refuse_damage(teachers, sums[-1])
            terms.append([list(teachers), sums.tolist()])
        return {"samples": int(samples), "base": base, "terms": terms, "decides": self._decides}

    def restore(self, totals: dict[str, Any], device: torch.device) -> None:
        """Continues from what `totals` returned. Call it in one process only, because these are the sums of all.

        Raises:
            ValueError: the values are damaged.
        """
        if not totals:
            return
        try:
            samples, base, decides = totals["samples"], float(totals["base"]), totals["decides"]
            terms = {tuple(names): np.array(sums, np.float32) for names, sums in totals["terms"]}
            fits = all(
                sums.shape == (_COLUMNS, len(names)) and all(re.fullmatch("[a-z_]+", name) for name in names)
                for names, sums in terms.items()
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            fits = False
        if not fits or type(samples) is not int or not 0 < samples < 2**63 or type(decides) is not bool:
            raise ValueError("The sums of the log in the checkpoint are damaged. Resume from an earlier checkpoint.")
        self._samples, self._base = samples, torch.tensor(base, device=device)
        self._terms = {names: torch.from_numpy(sums).to(device) for names, sums in terms.items()}
        self._decides = decides

    def means_since_last_log(self, accelerator: Accelerator, weighted: Sequence[str]) -> dict[str, float]:
        """The means over all processes' samples. Waits for the device, and starts new sums.

        Args:
            accelerator: The run's.
            weighted: The names of the teachers in use, which the log has from the first entry on.

        Raises:
            FloatingPointError: see `totals`.
        """
        totals = self.totals(accelerator)
        if not totals:
            return {}
        of_teachers = {name: np.zeros(_COLUMNS) for name in weighted}
        for names, sums in totals["terms"]:
            for name, column in zip(names, np.transpose(sums), strict=True):
                of_teachers[name] = of_teachers.get(name, 0) + column
        decides = self._decides
        self._samples, self._base, self._terms = 0, None, {}
        means = {"base_loss": totals["base"] / totals["samples"]}
        for name, column in of_teachers.items():
            divergence, trust, agreement, present, _ = column.tolist()
            # By definition 0 where no sample has the teacher.
            means[f"{name}_loss"] = divergence / trust if trust else 0.0
            means[f"{name}_coverage"] = present / totals["samples"]
            if present and decides:
                means[f"{name}_agreement"] = agreement / present
        return means


def keep_log(store: LogitsStore, entries: Sequence[dict[str, Any]]) -> None:
    """Writes the Trainer's log into the store, without times, which differ between nodes."""
    times = ("_runtime", "_per_second")
    store.write_log([{name: v for name, v in entry.items() if not name.endswith(times)} for entry in entries])


def _refuse_damage(teachers: tuple[str, ...], samples: npt.NDArray[Any]) -> None:
    wrong = [name.replace("_", "-") for name, count in zip(teachers, samples, strict=True) if count]
    if wrong:
        raise FloatingPointError(
            f"The part of the loss of the {' and '.join(wrong)} teacher is not finite for samples whose base loss is: "
            "the weights are damaged since the last log or checkpoint. Are there logits that are not finite, such as "
            "-inf for classes that are ruled out? Use a large negative number, -1e4. Resume from the last checkpoint."
        )
