"""Measures on recorded histories how right the targets of trust by honesty are, and how much its constants matter.

    python scripts/benchmark_labels.py --data_dir GLUE --results results.jsonl --histories DIR
    python scripts/benchmark_honest.py DIR > honest-targets.md

A history holds what a plain run predicted for its training samples in each epoch, their labels and the true labels.
The target of an epoch is what the model would learn from in it: it is made from the short-term teacher and, with
mini-generations of two epochs, the long-term one. A target is better if the mean negative log-likelihood of the true
labels, in nats, is lower. Nothing is trained here; benchmark_quality.py measures what training with such targets
gains.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmark_labels import History, Run, measured_by_epoch
from benchmark_quality import table
from lstsd_hf.method import honest
from lstsd_hf.method.honest import Honest, LabelShares, label_evidence, witness
from lstsd_hf.method.memory import Measured

EPOCHS = (3, 5)  # of the targets, counted from 0: the first in which the gate can be open, and the last
K = 2
LEAST = 1e-3  # the least probability that counts, so that no single sample decides the mean

Change = dict[str, Any]
# The teachers, whether memory is taken out of their predictions, and where the share of wrong labels comes from:
# "counted", "true", or "" for a target without the label. Names in capitals replace constants of the rule.
RULE: Change = {"teachers": ["long", "short"], "forgets": True, "wrong": "counted"}
CHANGES: dict[str, Change] = {
    "the rule": RULE,
    "short-term teacher alone": RULE | {"teachers": ["short"]},
    "long-term teacher alone": RULE | {"teachers": ["long"]},
    "memory left in": RULE | {"forgets": False},
    "without the label": RULE | {"wrong": ""},
    "the true share of wrong labels": RULE | {"wrong": "true"},
    "0.7 halved": RULE | {"SPREAD": 0.35},
    "0.7 doubled": RULE | {"SPREAD": 1.4},
    "2 halved": RULE | {"SHARPNESS": 1.0},
    "2 doubled": RULE | {"SHARPNESS": 4.0},
}


def target(history: History, said: Sequence[Measured], epoch: int, change: Change) -> np.ndarray:
    """The target of an epoch: (N, C) probabilities.

    Args:
        history: The history of a plain run.
        said: What the memory meter measured after each of its epochs.
        epoch: The epoch in which the target would teach, at least K + 1.
        change: One of `CHANGES`.
    """
    given, classes = history.given, history.logits.shape[-1]
    constants = {name: value for name, value in change.items() if name.isupper()}
    teachers = {"long": epoch // K * K - 1, "short": epoch - 1}
    epochs = [teachers[name] for name in change["teachers"]]
    with mock.patch.dict(vars(honest), constants):
        priors = LabelShares.of(given, classes)
        found = [witness(history.logits[e], given, priors, said[e].honest) for e in epochs]
        witnesses = [w._replace(lowered=w.lowered * change["forgets"]) for w in found if w is not None]
        evidence = label_evidence(wrong_share(history, change["wrong"]), classes) if change["wrong"] else 0.0
        past = torch.from_numpy(history.logits[epochs])
        log_target, _ = Honest.of(witnesses, evidence, torch.device("cpu")).log_target(past, torch.from_numpy(given))
    return log_target.exp().double().numpy()


def wrong_share(history: History, wrong: str) -> float:
    """The share of wrong labels: the true share if `wrong` is "true", else the one counted from predictions."""
    return float((history.given != history.true).mean()) if wrong == "true" else history.wrong_share


def loss(probabilities: np.ndarray, true: np.ndarray) -> float:
    """The mean negative log-likelihood in nats of the (N,) true classes, given (N, C) probabilities."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(true)), true], LEAST)).mean())


def losses(folder: Path) -> Iterator[tuple[tuple[str, float], int, str, float]]:
    """Yields (task, noise), epoch, change and loss for each history of a plain run with some wrong labels."""
    for run in (Run.of(path.stem) for path in sorted(folder.glob("*.npz"))):
        if not run.noise or (run.rows, run.method) != ("dirty", "plain"):
            continue
        history = History.load(folder / f"{run.key}.npz")
        if math.isnan(history.wrong_share):  # the gate stays shut in such a run, so it has no target
            continue
        said = measured_by_epoch(history, run.seed)
        for epoch in EPOCHS:
            labels = np.eye(history.logits.shape[-1])[history.given]
            yield (run.task, run.noise), epoch, "the label", loss(labels, history.true)
            for name, change in CHANGES.items():
                yield (run.task, run.noise), epoch, name, loss(target(history, said, epoch, change), history.true)


def report(folder: Path) -> str:
    """Markdown: the rule's loss by epoch and share of wrong labels, averaged over tasks, and what each change adds."""
    found: dict[tuple[int, str, tuple[str, float]], list[float]] = defaultdict(list)
    for cell, epoch, name, value in losses(folder):
        found[epoch, name, cell].append(value)
    if not found:
        raise SystemExit(
            f"{folder} has no history of a plain run with wrong labels: make some with benchmark_labels.py."
        )
    cells = sorted({cell for _, _, cell in found})
    columns = [(epoch, noise) for epoch in EPOCHS for noise in sorted({noise for _, noise in cells})]

    def means(name: str) -> np.ndarray:
        """(columns,): for each column, the mean over tasks of the mean over a task's runs."""
        chosen = (
            [np.mean(found[epoch, name, cell]) for cell in cells if cell[1] == noise] for epoch, noise in columns
        )
        return np.array([np.mean(of_tasks) for of_tasks in chosen])

    rule = means("the rule")
    rows = [[name, *(f"{gap:+.3f}" for gap in means(name) - rule)] for name in ["the label", *CHANGES]]
    rows[1] = ["the rule", *(f"{value:.3f}" for value in rule)]
    head = ["", *(f"epoch {epoch + 1}, {noise:.0%} wrong" for epoch, noise in columns)]
    runs = len(found[EPOCHS[0], "the rule", cells[0]])
    told = ", ".join(sorted({task for task, _ in cells}))
    return f"{told}; {runs} seeds or more each\n\n{table(head, rows)}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("histories", type=Path, help="the folder in which benchmark_labels.py kept the histories")
    print(report(parser.parse_args(argv).histories))


if __name__ == "__main__":
    main()
