"""The parts of the loss in the log: sums since the last one, kept on the device."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..method.loss import TeacherTerms

_COLUMNS = 4  # trust times divergence, trust, agreement, presence


class LossParts:
    """Sums of the loss's parts since the last log; reading them in a step would wait for the device."""

    def __init__(self) -> None:
        self._samples = 0
        self._base: torch.Tensor | None = None
        # By the names of the teachers that there were, float32 (4, T): sums over samples, see _COLUMNS.
        self._terms: dict[tuple[str, ...], torch.Tensor] = {}
        self._decides = True

    def add(
        self, base_loss: torch.Tensor, samples: int, teachers: tuple[str, ...], terms: TeacherTerms | None
    ) -> None:
        """Adds a micro-batch with the terms of its teachers, of these names."""
        base = base_loss.detach().float() * samples
        self._base = base if self._base is None else self._base + base
        self._samples += samples
        if terms is not None:
            present, trust, divergence, agreement = terms
            self._decides = agreement is not None
            columns = [trust * divergence.detach(), trust, present if agreement is None else agreement, present]
            sums = torch.stack(columns).sum(dim=2)
            self._terms[teachers] = self._terms[teachers] + sums if teachers in self._terms else sums

    def totals(self, accelerator: Accelerator) -> dict[str, Any]:
        """The sums over all processes, as plain values for a checkpoint; waits for the device."""
        if self._base is None:
            return {}
        parts = [self._base.new_full((), self._samples), self._base, *(s.flatten() for s in self._terms.values())]
        samples, base, *rest = accelerator.reduce(torch.hstack(parts), "sum").tolist()
        terms = []
        for teachers in self._terms:
            size = _COLUMNS * len(teachers)
            terms.append([list(teachers), np.reshape(rest[:size], (_COLUMNS, -1)).tolist()])
            del rest[:size]
        return {"samples": int(samples), "base": base, "terms": terms, "decides": self._decides}

    def restore(self, totals: dict[str, Any], device: torch.device) -> None:
        """Goes on from what `totals` gave; call it in one process, and leave the others at nothing."""
        if totals:
            self._samples, self._base = totals["samples"], torch.tensor(totals["base"], device=device)
            self._terms = {tuple(names): torch.tensor(sums, device=device) for names, sums in totals["terms"]}
            self._decides = totals["decides"]

    def means_since_last_log(self, accelerator: Accelerator, weighted: Sequence[str]) -> dict[str, float]:
        """The means over all processes' samples; waits for the device.

        Args:
            accelerator: The run's.
            weighted: The teachers that are in use, which the log names from the first entry on.

        Raises:
            FloatingPointError: the base loss is finite, and a teacher's part of the loss is not.
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
        for name, (divergence, trust, agreement, present) in of_teachers.items():
            # By definition 0 where no sample has the teacher.
            means[f"{name}_loss"] = divergence / trust if trust else 0.0
            means[f"{name}_coverage"] = present / totals["samples"]
            if present and decides:
                means[f"{name}_agreement"] = agreement / present
            if math.isfinite(totals["base"]) and not math.isfinite(divergence):
                raise FloatingPointError(
                    f"The {name.replace('_', '-')} teacher's part of the loss is {divergence}, and the base loss is "
                    f"finite ({means['base_loss']:.4g}): the weights are damaged since the last log. Go on from an "
                    "earlier checkpoint, with a lower learning rate or logits_dtype='float32'; and please report it."
                )
        return means
