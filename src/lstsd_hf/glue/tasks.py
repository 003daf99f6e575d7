"""GLUE's nine tasks: their columns, labels and metrics, and the format of a submission."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


@dataclass(frozen=True)
class Task:
    """A GLUE task.

    Attributes:
        folder: its folder in GLUE's own layout, and the name of its submission file.
        columns: the text columns, from the Hub's name to the name in the TSV files.
        label_column: the name of the label column in the TSV files.
        labels: the names of the labels by their ids on the Hub; empty if the label is a score.
        spelled_out: whether the TSV files and the submission hold the labels' names; otherwise they hold the ids.
    """

    folder: str
    columns: dict[str, str]
    label_column: str
    labels: tuple[str, ...]
    spelled_out: bool = False


_PAIR = {"sentence1": "sentence1", "sentence2": "sentence2"}
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task("CoLA", {"sentence": "sentence"}, "label", ("unacceptable", "acceptable")),
    "sst2": Task("SST-2", {"sentence": "sentence"}, "label", ("negative", "positive")),
    "mrpc": Task(
        "MRPC", {"sentence1": "#1 String", "sentence2": "#2 String"}, "Quality", ("not_equivalent", "equivalent")
    ),
    "stsb": Task("STS-B", _PAIR, "score", ()),
    "qqp": Task(
        "QQP",
        {"question1": "question1", "question2": "question2"},
        "is_duplicate",
        ("not_duplicate", "duplicate"),
    ),
    "mnli": Task(
        "MNLI",
        {"premise": "sentence1", "hypothesis": "sentence2"},
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        spelled_out=True,
    ),
    "qnli": Task("QNLI", {"question": "question", "sentence": "sentence"}, "label", _ENTAILMENT, spelled_out=True),
    "rte": Task("RTE", _PAIR, "label", _ENTAILMENT, spelled_out=True),
    "wnli": Task("WNLI", _PAIR, "label", ("not_entailment", "entailment")),
}


def _undefined_is_zero(score: float) -> float:
    return float(score) if math.isfinite(score) else 0.0


def correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman correlation of two vectors, each 0.0 where it is undefined.

    It is undefined if one of the vectors is constant, as the predictions of a model that has learnt nothing yet can
    be. scipy returns NaN there, which is not JSON, and which `load_best_model_at_end` cannot compare.
    """
    if len(predictions) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"pearson": 0.0, "spearmanr": 0.0}
    return {
        "pearson": _undefined_is_zero(pearsonr(predictions, references).statistic),
        "spearmanr": _undefined_is_zero(spearmanr(predictions, references).statistic),
    }


class GlueMetric(evaluate.Metric):
    """GLUE's official metrics, under the names that `evaluate`'s own `glue` gives them, without a download.

    `config_name` is a task, or "classification" or "regression" for other data. Predictions and references are label
    ids; for stsb and regression they are numbers, and the metric is `correlations`.
    """

    def _info(self) -> evaluate.MetricInfo:
        value = Value("float32" if self.config_name in ("stsb", "regression") else "int64")
        return evaluate.MetricInfo(
            description="The official metrics of the GLUE benchmark.",
            citation="",
            features=Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        if self.config_name in ("stsb", "regression"):
            return correlations(predictions, references)
        if self.config_name == "cola":
            return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}
        scores = {"accuracy": float(accuracy_score(references, predictions))}
        if self.config_name in ("mrpc", "qqp"):
            scores["f1"] = float(f1_score(references, predictions, zero_division=0.0))
        return scores


def _in_tsv(cell: str) -> str:
    """A cell of a TSV file; in quotes, as in CSV, if a tab or a line end in it would begin another."""
    return '"' + cell.replace('"', '""') + '"' if re.search(r"[\t\r\n]", cell) else cell


def write_predictions(
    path: Path, labels: Sequence[str], task_name: str | None, idx: Sequence[int], found: np.ndarray
) -> None:
    """Writes predictions in GLUE's submission format: a header, then an index and a prediction per line.

    Args:
        path: the file to write.
        labels: the names of the labels, by id; empty if the predictions are scores.
        task_name: None for the user's own data: labels are written by name, in quotes if it has tabs or line ends,
            and scores with six significant digits.
        idx: (N,) the indices of the rows.
        found: (N,) label ids, or scores, which are clipped to 0..5 for stsb.
    """
    if not labels:
        written = [f"{score:.6g}" if task_name is None else f"{min(max(score, 0.0), 5.0):.3f}" for score in found]
    elif task_name is None or TASKS[task_name].spelled_out:
        written = [labels[label] for label in found]
    else:
        written = [str(label) for label in found]
    written = [_in_tsv(prediction) for prediction in written]
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write("index\tprediction\n")
        out.writelines(f"{index}\t{prediction}\n" for index, prediction in zip(idx, written, strict=True))
