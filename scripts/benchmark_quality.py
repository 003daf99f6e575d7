"""Trains a grid of tasks, methods, seeds and label noise, and compares the methods with plain fine-tuning.

    python scripts/benchmark_quality.py CONFIG.yaml --data_dir GLUE --results results.jsonl [--workers 2]
    python scripts/benchmark_quality.py CONFIG.yaml --report results.jsonl [more.jsonl ...] [--plot out.png]

Each finished run adds a line to the results file, and a run that has its line is not repeated, so you may stop and
restart the script at any time. `--report` takes several files. A method is a set of `LSTSDConfig` fields. Beside them,
`rival` names another way to train from quality/rivals.py, `constants` replaces constants of `lstsd_hf.method.honest`,
and `peaks` restarts the learning rate during the run. A seed sets which rows are drawn, which labels are changed, the
head's initial weights, the order of the rows and dropout, so that every method sees the same. If labels are changed
and `logits_retention` is "all", a run also measures how well `lstsd report` finds the changed labels; see
configs/quality/label_errors.yaml.
"""

import argparse
import functools
import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from datasets import Dataset
from scipy.special import log_softmax
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    set_seed,
)

from lstsd_hf import LSTSDConfig, LSTSDTrainer, write_report
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers, set_head, tokenize
from lstsd_hf.glue.tasks import GlueMetric
from lstsd_hf.method import dynamics, honest
from lstsd_hf.method.heads import Classes, Scores
from lstsd_hf.paths import REPORT_FOLDER
from quality.grid import made_with, read_results, train_all, train_and_test
from quality.rivals import RIVALS
from quality.rows import NORMAL_95, ROTTEN_TOMATOES, TREC, Cell, agreement, classes_of, split

HEADLINE = {"cola": "matthews_correlation", "stsb": "pearson"}  # the others: accuracy
NAMES = {
    "cola": "CoLA",
    "mrpc": "MRPC",
    "rte": "RTE",
    ROTTEN_TOMATOES: "Rotten T.",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "trec6": "TREC-6",
    "trec50": "TREC-50",
}
OWN_SETTINGS = ("rival", "constants", "peaks")  # settings of a method that are not `LSTSDConfig` fields
CALIBRATION_BINS = 15
LOWER_IS_BETTER = ("nll", "ece")
METER = ("honest_accuracy", "honest_loss", "memorised")  # prefixes of names in the log


@dataclass(frozen=True)
class Plan:
    """What a YAML file asks for.

    Attributes:
        model_name_or_path: A folder, a name on the Hub, or `package://NAME/path`.
        num_hidden_layers: How many of the model's first layers are kept; None: all. A cell may override it.
        max_seq_length: Longer inputs are truncated to this many tokens.
        seeds: Every method runs once for each seed.
        cells: The fields of each `Cell`, and optionally `num_hidden_layers`, and `methods` if only some are run.
        training: `LSTSDConfig` fields of every run.
        methods: `LSTSDConfig` fields by method. The others are compared with "plain" and "plain_short". A teacher's
            weight of null means the default for the task.
        tuning: Whether to test on the rows reserved for tuning instead of the test rows.
    """

    model_name_or_path: str
    num_hidden_layers: int | None
    max_seq_length: int
    seeds: list[int]
    cells: list[dict[str, Any]]
    training: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    tuning: bool = False

    def runs(self) -> Iterator["Run"]:
        """All runs, one seed after the other, so that finished runs can be paired at any time."""
        for seed, cell, method in itertools.product(self.seeds, self.cells, self.methods):
            cell = {"num_hidden_layers": self.num_hidden_layers, "methods": self.methods, **cell}
            num_hidden_layers, methods = cell.pop("num_hidden_layers"), cell.pop("methods")
            if method not in methods:
                continue
            chosen = Cell(**cell)
            if "label_smoothing_factor" in self.methods[method] and chosen.task == "stsb":
                continue  # a regression has no classes to smooth over
            yield Run(
                chosen,
                method,
                seed,
                with_default_weights(self.training | self.methods[method], chosen.task),
                self.model_name_or_path,
                num_hidden_layers,
                self.max_seq_length,
                self.tuning,
            )


@dataclass(frozen=True)
class Run:
    """One training run."""

    cell: Cell
    method: str
    seed: int
    settings: dict[str, Any]
    model_name_or_path: str
    num_hidden_layers: int | None
    max_seq_length: int
    tuning: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that are `LSTSDConfig` fields."""
        return {name: value for name, value in self.settings.items() if name not in OWN_SETTINGS}

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on. The method counts by its settings, not by its name."""
        facts = {name: value for name, value in asdict(self).items() if name != "method"}
        if self.cell.flips == "evenly":
            facts["cell"].pop("flips")  # so that results from before other flips existed keep their key
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def with_default_weights(settings: dict[str, Any], task: str) -> dict[str, Any]:
    """The settings, with the task's default for teachers' weights that are None, so that a line has the numbers."""
    weight = (Scores if task == "stsb" else Classes).default_weight
    weights = {"long_term_weight": weight, "short_term_weight": weight}
    return {name: weights.get(name) if value is None else value for name, value in settings.items()}


def read_plan(path: str) -> Plan:
    return Plan(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))


# ---- a run


def train(run: Run, data_dir: str) -> dict[str, Any]:
    """Trains and tests; returns a line of the results file."""
    data = split(run.cell, run.seed, run.tuning, data_dir)
    path = resolve_package(run.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = AutoConfig.from_pretrained(path)
    set_head(config, data.labels)
    if run.num_hidden_layers is not None:
        keep_layers(config, run.num_hidden_layers)

    def tokens(rows: Dataset) -> Dataset:
        arguments = {"tokenizer": tokenizer, "columns": data.text_columns, "max_length": run.max_seq_length}
        removed = list(data.text_columns)
        return rows.map(tokenize, batched=True, remove_columns=removed, fn_kwargs={**arguments, "padding": False})

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(vars(honest), run.settings.get("constants", {})):
        args = LSTSDConfig(
            output_dir=folder,
            seed=run.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **{"use_cpu": not torch.cuda.is_available()} | run.arguments,
        )
        set_seed(run.seed)
        trainer = LSTSDTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(path, config=config),
            args=args,
            train_dataset=tokens(data.train),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        if "peaks" in run.settings:
            trainer.create_optimizer()
            trainer.lr_scheduler = in_cycles(trainer, run.settings["peaks"])
        if "rival" in run.settings:
            trainer.compute_loss_func = RIVALS[run.settings["rival"]](trainer, run.cell.noise)
        seconds, outcome = train_and_test(trainer, tokens(data.test))
        has_wrong_classes = len(data.mislabelled) and data.labels
        believed = trainer.predict(tokens(data.mislabelled)) if has_wrong_classes else None
        search = {}
        if believed is not None and args.logits_retention == "all":
            write_report(folder)
            search = found_errors(Path(folder, REPORT_FOLDER), data.mislabelled["sample_id"])

    line: dict[str, Any] = {
        "key": run.key,
        "task": run.cell.task,
        "noise": run.cell.noise,
        "flips": run.cell.flips,
        "method": run.method,
        "seed": run.seed,
        "train_samples": len(data.train),
        "test_samples": len(data.test),
        "train_seconds": round(seconds, 1),
        "settings": run.settings,
        "num_hidden_layers": run.num_hidden_layers,
        **made_with(),
        **search,
    }
    gates = [entry["honest_gate"] for entry in trainer.state.log_history if "honest_gate" in entry]
    line |= {"honest_gate": gates[-1]} if gates else {}
    line |= scores(run.cell.task, outcome.predictions, outcome.label_ids, data.train["label"])
    line |= metered(trainer.state.log_history)
    drawn = slice(data.dev_samples, None)
    if data.labels and len(outcome.label_ids[drawn]):
        line["drawn_samples"] = len(outcome.label_ids[drawn])
        line["drawn_accuracy"] = float((outcome.predictions.argmax(-1) == outcome.label_ids)[drawn].mean())
    if believed is not None:
        line["believed"] = float((believed.predictions.argmax(-1) == believed.label_ids).mean())
    return line


def metered(log: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last entry of the log on what was learnt and what was memorised."""
    said = [entry for entry in log if "memorised" in entry]
    return {name: value for name, value in said[-1].items() if name.startswith(METER)} if said else {}


def in_cycles(trainer: LSTSDTrainer, peaks: Sequence[float]) -> LambdaLR:
    """A learning rate with one cycle for each peak, a share of the highest rate, from which it falls linearly to 0."""
    args = trainer.args
    steps = args.num_train_epochs * math.ceil(len(trainer.train_dataset) / args.per_device_train_batch_size)

    def share(step: int) -> float:
        cycle, within = divmod(min(step, steps - 1) * len(peaks) / steps, 1)
        return peaks[int(cycle)] * (1 - within) * min(1.0, (step + 1) / (args.warmup_steps * steps))

    return LambdaLR(trainer.optimizer, share)


def scores(task: str, logits: Any, labels: Any, train_labels: Iterable[float]) -> dict[str, float]:
    """The task's metrics; for classes also negative log-likelihood, calibration error and the majority's accuracy.

    Args:
        task: Sets the metrics, which are GLUE's. The one that tables show is also returned as "score".
        logits: (N, C).
        labels: (N,) true labels.
        train_labels: The labels that the model was trained on. They set the majority class.
    """
    regression = logits.shape[-1] == 1
    name = "classification" if task in (ROTTEN_TOMATOES, *TREC) else task
    predictions = logits[:, 0] if regression else logits.argmax(-1)
    found = GlueMetric(config_name=name, keep_in_memory=True).compute(predictions=predictions, references=labels)
    found["score"] = found[HEADLINE.get(task, "accuracy")]
    if not regression:
        log_probs = log_softmax(logits.astype(np.float64), axis=-1)
        found["nll"] = float(-log_probs[np.arange(len(labels)), labels].mean())
        found["ece"] = calibration_error(np.exp(log_probs), labels)
        majority = np.bincount(np.asarray(train_labels)).argmax()
        found["majority"] = float((labels == majority).mean())
        found["accuracy"] = float((predictions == labels).mean())
    return found


def found_errors(report: Path, mislabelled: Sequence[int]) -> dict[str, float]:
    """How well the report's noise score, and two common scores, find the mislabelled samples.

    Args:
        report: The folder that `lstsd report` wrote.
        mislabelled: The ids of the W samples whose label was changed.

    Returns:
        For each score "X": "X_auc", the area under the ROC curve (chance: 0.5); "X_precision", the share of
        mislabelled samples among the first W; "X_recall", the share of all mislabelled samples among the first 2 W.
    """
    samples = pq.read_table(report / "samples.parquet").to_pandas().set_index("sample_id")
    probs, labels = np.load(report / "pred_probs.npy"), np.load(report / "labels.npy")
    ids = np.load(report / "sample_ids.npy")
    wrong = np.isin(ids, mislabelled)
    candidates = {
        "noise_score": samples.loc[ids, "noise_score"].to_numpy(),
        "margin": -samples.loc[ids, "area_under_margin"].to_numpy(),
        "last_loss": -np.log(np.maximum(probs[np.arange(len(ids)), labels], np.finfo(np.float32).tiny)),
    }
    found = {}
    for name, score in candidates.items():
        first = wrong[np.argsort(-score, kind="stable")]
        count = int(wrong.sum())
        found[f"{name}_auc"] = float(roc_auc_score(wrong, score))
        found[f"{name}_precision"] = float(first[:count].mean())
        found[f"{name}_recall"] = float(first[: 2 * count].sum() / count)
    return found


def calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo et al., 2017): |accuracy - confidence| over bins of equal width, by share.

    Args:
        probs: (N, C).
        labels: (N,) the true classes.
    """
    hits = (probs.argmax(-1) == labels).astype(float)
    return dynamics.calibration(probs.max(-1), hits, CALIBRATION_BINS).expected_error


def told(line: dict[str, Any]) -> str:
    cell = cell_name(Cell(line["task"], line["noise"], line["train_samples"], flips=line["flips"]))
    return f"{cell}, {line['method']}, seed {line['seed']}: {100 * line['score']:.2f} ({line['train_seconds']:.0f} s)"


# ---- the report


@dataclass(frozen=True)
class Difference:
    """A method compared with a baseline, paired by seed.

    Attributes:
        mean: The mean of method minus baseline.
        half_width: The half-width of the paired-t 95 % interval; NaN for a single seed.
        wins: The number of seeds in which the method is better.
        losses: The number of seeds in which it is worse.
    """

    mean: float
    half_width: float
    wins: int
    losses: int


def paired(method: np.ndarray, baseline: np.ndarray, lower_is_better: bool = False) -> Difference:
    """Compares two arrays (seeds,) of the same seeds."""
    gaps = method - baseline
    n = len(gaps)
    half = float(student_t.ppf(0.975, n - 1) * gaps.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    better = -gaps if lower_is_better else gaps
    return Difference(float(gaps.mean()), half, int((better > 0).sum()), int((better < 0).sum()))


class Results:
    """The lines of a plan, by cell, method and metric."""

    def __init__(self, plan: Plan, lines: Sequence[dict[str, Any]]) -> None:
        by_key = {line["key"]: line for line in lines}
        planned = list(plan.runs())
        runs = [run for run in planned if run.key in by_key]
        self.methods = [name for name in plan.methods if any(run.method == name for run in runs)]
        self.cells = list(dict.fromkeys(run.cell for run in runs))
        self.missing = len(planned) - len(runs)
        self._lines = {(run.cell, run.method, run.seed): by_key[run.key] for run in runs}
        self._planned = {(run.cell, run.method) for run in planned}
        self._seeds = plan.seeds

    def values(self, cell: Cell, method: str, metric: str, beside: str | None = None) -> np.ndarray:
        """(seeds,): the metric, x 100 except nll, for the seeds that were run with the method and with `beside`."""
        found = [
            self._lines[(cell, method, seed)].get(metric, np.nan)
            for seed in self._seeds
            if (cell, method, seed) in self._lines and (cell, beside or method, seed) in self._lines
        ]
        values = np.array(found, dtype=float)
        return values if metric == "nll" else 100 * values

    def meter_errors(self) -> Iterator[tuple[str, tuple[float, float]]]:
        """Yields for each run its method, honest accuracy minus the truth, and that difference's standard error."""
        for (cell, method, _), line in self._lines.items():
            if cell.flips != "evenly" or "drawn_accuracy" not in line or "honest_accuracy" not in line:
                continue
            accuracy, drawn = line["drawn_accuracy"], line["drawn_samples"]
            none, truth, all_right = (agreement(a, cell.noise, classes_of(cell.task)) for a in (0, accuracy, 1))
            truth_error = abs(all_right - none) * math.sqrt(accuracy * (1 - accuracy) / drawn)
            yield method, (line["honest_accuracy"] - truth, math.hypot(line["honest_accuracy_error"], truth_error))

    def is_planned(self, cell: Cell, method: str) -> bool:
        """Whether the plan has the method in this cell. A regression, for one, has no label smoothing."""
        return (cell, method) in self._planned

    def counts(self, cell: Cell) -> bool:
        """Whether plain fine-tuning beats the majority class by over two standard errors of the mean over seeds."""
        if cell.task == "stsb":
            scores, chance = self.values(cell, "plain", "score"), 0.0
        else:
            scores, chance = self.values(cell, "plain", "accuracy"), self.values(cell, "plain", "majority")
        gaps = scores - chance
        return len(gaps) > 0 and gaps.mean() > 2 * (gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 1.0)


def average(results: Results, cells: Sequence[Cell], method: str, baseline: str, metric: str) -> Difference | None:
    """The paired difference of means over the cells that the method is planned for; None if one has no runs."""
    pairs = [
        (results.values(cell, method, metric, baseline), results.values(cell, baseline, metric, method))
        for cell in cells
        if results.is_planned(cell, method)
    ]
    pairs = [(a, b) for a, b in pairs if len(a) == 0 or not np.isnan(a).all()]
    if not pairs or min(len(a) for a, _ in pairs) == 0:
        return None
    seeds = min(len(a) for a, _ in pairs)
    mean = [np.mean([side[k][:seeds] for side in pairs], axis=0) for k in (0, 1)]
    return paired(mean[0], mean[1], metric in LOWER_IS_BETTER)


def cell_name(cell: Cell) -> str:
    name = NAMES[cell.task]
    if cell.noise:
        name += f", {cell.noise:.0%} " + ("noise" if cell.flips == "evenly" else "as annotators err")
    return name + (f", {cell.train_samples:,} rows" if (cell.train_samples or 0) > 2000 else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def tables(results: Results) -> str:
    """Markdown: the mean and standard deviation of each metric, and paired differences to plain fine-tuning."""
    counted = [cell for cell in results.cells if results.counts(cell)]
    clean, noisy = ([cell for cell in counted if bool(cell.noise) is bad] for bad in (False, True))
    groups = {"mean, clean": clean, "mean, noisy": noisy}
    groups |= {
        f"mean, {share:.0%} noise": [cell for cell in noisy if cell.noise == share]
        for share in sorted({cell.noise for cell in noisy})
    }
    groups = {name: cells for name, cells in groups.items() if cells}
    parts = [f"{results.missing} runs are missing."] if results.missing else []
    left_out = [cell_name(cell) for cell in results.cells if cell not in counted]
    if left_out and "plain" in results.methods:
        parts.append(
            f"Left out of the means, because plain fine-tuning does not clearly beat the majority: {left_out}."
        )
    for metric, title in METRICS.items():
        shown = [
            cell
            for cell in results.cells
            if any(np.isfinite(results.values(cell, method, metric)).any() for method in results.methods)
        ]
        if not shown:
            continue
        rows = []
        for method in results.methods:
            found = [results.values(cell, method, metric) for cell in shown]
            rows.append(
                [
                    method,
                    *(f"{x.mean():.2f} ± {x.std(ddof=1) if len(x) > 1 else 0:.2f}" if len(x) else "" for x in found),
                ]
            )
        parts.append(f"### {title}\n\n" + table(["", *map(cell_name, shown)], rows))
        for baseline in ("plain", "plain_short"):
            rows = []
            for method in results.methods:
                if method == baseline or baseline not in results.methods:
                    continue
                cells = [
                    paired(
                        results.values(cell, method, metric, baseline),
                        results.values(cell, baseline, metric, method),
                        metric in LOWER_IS_BETTER,
                    )
                    if len(results.values(cell, method, metric, baseline))
                    else None
                    for cell in shown
                ]
                means = [average(results, cells, method, baseline, metric) for cells in groups.values()]
                rows.append([method, *map(in_words, [*cells, *means])])
            if rows:
                head = [f"minus {baseline}", *map(cell_name, shown), *groups]
                parts.append(table(head, rows))
    return "\n\n".join(filter(None, [*parts, of_meter(results)]))


def of_meter(results: Results) -> str:
    """Markdown: the last honest accuracy of the log, compared with the accuracy on rows drawn like the training rows.

    Only cells with right labels or even flips count, because there the accuracy gives the agreement with equally noisy
    labels. Empty if no run has both.
    """
    rows = []
    for method in [None, *results.methods]:
        found = np.array([gap for name, gap in results.meter_errors() if method in (None, name)])
        if len(found):
            rows.append([method or "all", str(len(found)), *how_far_off(found)])
    if not rows:
        return ""
    return "### Honest accuracy after the last epoch, in points\n\n" + table(["", "runs", *HOW_FAR_OFF], rows)


HOW_FAR_OFF = ("mean absolute error", "mean error", "standard error as told", "in the 95 % interval")


def how_far_off(gaps: np.ndarray) -> list[str]:
    """The cells under `HOW_FAR_OFF`, in points, for (N, 2) estimates minus the truth and their standard errors."""
    wrong, said = 100 * gaps.T
    inside = np.abs(wrong) <= NORMAL_95 * said
    return [f"{np.abs(wrong).mean():.1f}", f"{wrong.mean():+.1f}", f"{said.mean():.1f}", f"{inside.mean():.0%}"]


METRICS = {
    "score": "Score (accuracy; CoLA: Matthews correlation; STS-B: Pearson correlation), x 100",
    "nll": "Negative log-likelihood",
    "ece": "Expected calibration error, x 100",
    "believed": "Mislabelled training samples whose true label the model believes, %",
    **{
        f"{score}_{measure}": f"Finding the mislabelled samples by {title}: {what}"
        for measure, what in {
            "auc": "ROC AUC, x 100",
            "precision": "precision at their number, %",
            "recall": "recall at twice their number, %",
        }.items()
        for score, title in {
            "noise_score": "the report's noise score",
            "margin": "the area under the margin",
            "last_loss": "the last epoch's loss",
        }.items()
    },
}


def in_words(difference: Difference | None) -> str:
    if difference is None or np.isnan(difference.mean):
        return ""
    return f"{difference.mean:+.2f} ± {difference.half_width:.2f} ({difference.wins}-{difference.losses})"


def plot(results: Results, path: Path) -> None:
    """Draws the paired differences to plain fine-tuning: a row for each cell, a colour for each method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [method for method in results.methods if method != "plain"]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(shown) * len(results.cells) + 1), layout="constrained")
    for i, method in enumerate(shown):
        found = []
        for row, cell in enumerate(results.cells):
            values = results.values(cell, method, "score", "plain")
            if len(values):
                gap = paired(values, results.values(cell, "plain", "score", method))
                found.append((row + 0.8 * i / len(shown) - 0.3, gap.mean, gap.half_width))
        rows, means, halves = zip(*found, strict=True)
        axes.errorbar(means, rows, xerr=halves, fmt="o", capsize=2, label=method)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(results.cells)), [cell_name(cell) for cell in results.cells])
    axes.invert_yaxis()
    axes.set_xlabel("score minus that of plain fine-tuning, x 100 (95 % interval over seeds)")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/quality/evidence.yaml")
    parser.add_argument("--data_dir", default="GLUE", help="a folder in GLUE's own TSV layout")
    parser.add_argument("--results", type=Path, help="the file that each finished run adds a line to")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs; they share the cores")
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="RESULTS", help="print the tables of these results; train nothing"
    )
    parser.add_argument("--plot", type=Path, help="with --report: the PNG file to draw")
    arguments = parser.parse_args(argv)
    if (arguments.results is None) == (arguments.report is None):
        parser.error("expected either --results FILE, to train, or --report FILE, to make the tables")
    plan = read_plan(arguments.config)
    if arguments.report is not None:
        results = Results(plan, read_results(arguments.report))
        print(tables(results))
        if arguments.plot is not None:
            plot(results, arguments.plot)
        return
    work = functools.partial(train, data_dir=arguments.data_dir)
    train_all(plan.runs(), work, arguments.results, arguments.workers, told)


if __name__ == "__main__":
    main()
