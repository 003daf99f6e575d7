"""Other ways to train under wrong labels: losses for `compute_loss_func`, of B samples with C classes.

A method of a plan names one by `rival`. They follow their papers, with the papers' constants. Only `HonestScores` is
ours: trust by honesty for a regression, which made no difference; see docs/results.md.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import beta

from lstsd_hf import LSTSDTrainer

_LEAST = 1e-4


class Rival:
    """A loss with a state for each sample. Without gradient, as in evaluation, it is the task's own loss.

    Attributes:
        trainer: Gives the sample ids of a batch, and the epoch.
        given: (N,) the labels by sample id: int64 classes, or float32 scores.
        classes: C; 1 for a regression.
        noise: The share of labels that was changed. Only `Forward` uses it.
    """

    def __init__(self, trainer: LSTSDTrainer, noise: float) -> None:
        rows, device = trainer.train_dataset, trainer.args.device
        ids = torch.tensor(rows["sample_id"][:])
        self.trainer, self.classes, self.noise = trainer, trainer.model.config.num_labels, noise
        labels = torch.tensor(rows["label"][:])
        self.given = labels.new_zeros(int(ids.max()) + 1)
        self.given[ids] = labels
        self.given = self.given.to(device)

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs.logits.float()
        if not logits.requires_grad:
            return F.cross_entropy(logits, labels) if self.classes > 1 else F.mse_loss(logits[:, 0], labels)
        ids = self.trainer.batch_sample_ids.to(logits.device)
        return self.loss(logits, labels, ids, int(self.trainer.state.epoch or 0))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        raise NotImplementedError

    def one_hot(self) -> torch.Tensor:
        """(N, C) float32."""
        return F.one_hot(self.given, self.classes).float()


class EarlyLearning(Rival):
    """ELR (Liu et al., 2020): pulls the student towards the running mean of its predictions; beta 0.7, lambda 3."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._target = torch.zeros_like(self.one_hot())

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        probs = logits.softmax(dim=-1).clamp(_LEAST, 1 - _LEAST)
        said = probs.detach() / probs.detach().sum(dim=-1, keepdim=True)
        self._target[ids] = 0.7 * self._target[ids] + 0.3 * said
        agreed = (self._target[ids] * probs).sum(dim=-1)
        return F.cross_entropy(logits, labels) + 3 * torch.log(1 - agreed).mean()


class SelfAdaptive(Rival):
    """SAT (Huang et al., 2020): after 0.3 of the run, each visit moves a label by 0.1 towards the prediction."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._target = self.one_hot()

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        if epoch < round(0.3 * self.trainer.args.num_train_epochs):
            return F.cross_entropy(logits, labels)
        self._target[ids] = 0.9 * self._target[ids] + 0.1 * logits.detach().softmax(dim=-1)
        target = self._target[ids]
        weights = target.amax(dim=-1)
        each = -(target * logits.log_softmax(dim=-1)).sum(dim=-1)
        return (weights * each).sum() / weights.sum()


class Mixture(Rival):
    """Hard dynamic bootstrapping without mixup (Arazo et al., 2019).

    From the second epoch on, a mixture of two beta distributions, fitted to the losses of the epoch before, gives the
    probability that a sample's label is wrong.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._losses = torch.full(self.given.shape, torch.nan, device=self.given.device)
        self._wrong = torch.zeros_like(self._losses)
        self._epoch = 0

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        if epoch > self._epoch:
            known = self._losses.isfinite()
            wrong = wrong_by_loss(self._losses[known].cpu().double().numpy())
            self._wrong[known] = torch.tensor(wrong, dtype=torch.float32, device=logits.device)
            self._epoch = epoch
        each = F.cross_entropy(logits, labels, reduction="none")
        self._losses[ids] = each.detach()
        wrong = self._wrong[ids]
        return ((1 - wrong) * each + wrong * F.cross_entropy(logits, logits.argmax(dim=-1), reduction="none")).mean()


def wrong_by_loss(losses: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Fits a mixture of two beta distributions by EM; returns (N,) probabilities of the one with larger losses."""
    low, high = np.percentile(losses, [5, 95])
    x = np.clip((losses - low) / max(high - low, _LEAST), _LEAST, 1 - _LEAST)
    of_high = (x > 0.5).astype(float)
    for _ in range(rounds):
        densities = []
        for share in (1 - of_high, of_high):
            share = np.maximum(share, _LEAST)
            mean = np.average(x, weights=share)
            variance = max(np.average((x - mean) ** 2, weights=share), _LEAST)
            strength = max(mean * (1 - mean) / variance - 1, _LEAST)
            densities.append(share.mean() * beta.pdf(x, mean * strength, (1 - mean) * strength))
        of_high = densities[1] / np.maximum(sum(densities), np.finfo(float).tiny)
    return of_high


class Forward(Rival):
    """Forward correction (Patrini et al., 2017) for even flips. It knows the true noise, so it is an upper bound."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        probs = logits.softmax(dim=-1)
        as_labels = (1 - self.noise) * probs + self.noise * (1 - probs) / (self.classes - 1)
        return F.nll_loss(as_labels.clamp(min=1e-7).log(), labels)


class HonestScores(Rival):
    """Trust by honesty for a regression, after `lstsd_hf.method.honest`: a gate set by losses, and past scores.

    Memory pulls a past score q towards its label y. So the distance that is left is stretched until its mean square
    equals h, the honest loss in the log. With the student's score s, m the memorised part of the loss, e its standard
    error, and v the variance of the labels:

        t    = y + sqrt(h / mean (q - y)^2) (q - y)
        gate = clamp((m / e - 1) / 2, 0, 1) m / (m + max(v - h, 0))
        loss = (1 - gate) (s - y)^2 + gate (s - t)^2
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._said = torch.full_like(self.given, torch.nan)
        self._target = self.given.clone()
        self._epoch, self.gate = 0, 0.0

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, epoch: int) -> torch.Tensor:
        if epoch > self._epoch:
            self._begin(epoch)
        scores = logits[:, 0]
        self._said[ids] = scores.detach()
        of_label, of_past = F.mse_loss(scores, labels), F.mse_loss(scores, self._target[ids])
        return (1 - self.gate) * of_label + self.gate * of_past

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        log = [entry for entry in self.trainer.state.log_history if "honest_loss" in entry][-1]
        distance = self._said - self.given
        known = distance.isfinite()
        stretched = math.sqrt(max(log["honest_loss"], 0.0) / max(float(distance[known].square().mean()), _LEAST))
        self._target = torch.where(known, self.given + max(stretched, 1.0) * distance, self.given)
        memorised = max(log["memorised"], 0.0)
        # After the first epoch nothing is memorised yet, and its standard error is 0 too.
        surely = min(max((memorised / log["memorised_error"] - 1) / 2, 0.0), 1.0) if memorised else 0.0
        skill = max(float(self.given[known].var(correction=0)) - log["honest_loss"], 0.0)
        self.gate = max(self.gate, surely * memorised / max(memorised + skill, _LEAST))


RIVALS: dict[str, Callable[[LSTSDTrainer, float], Rival]] = {
    "elr": EarlyLearning,
    "sat": SelfAdaptive,
    "mixture": Mixture,
    "forward": Forward,
    "honest_scores": HonestScores,
}
