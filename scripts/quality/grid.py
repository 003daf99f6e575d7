"""Trains a grid of runs, several at a time. Each finished run adds a line to the results file, and is not repeated."""

import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput

Line = dict[str, Any]


class Keyed(Protocol):
    @property
    def key(self) -> str:
        """Identifies everything that the result depends on; it is the "key" of the run's line."""


R = TypeVar("R", bound=Keyed)


def train_all(
    runs: Iterable[R], work: Callable[[R], Line], results: Path, workers: int, told: Callable[[Line], str]
) -> None:
    """Does the runs that have no line yet, and writes each line as its run finishes.

    After an error no more runs are handed to a process. Runs that were handed out already, a few more than there are
    processes, still finish, and their lines are written. Then the error is raised.

    Args:
        runs: The runs, in the order in which to start them.
        work: Does one run and returns its line. It must be picklable; worker processes call it, once for each run.
        results: The file to append the lines to.
        workers: The number of processes; they share the cores.
        told: Makes the text to print from a line.
    """
    done = {line["key"] for line in read_results([results])} if results.exists() else set()
    runs = list({run.key: run for run in runs}.values())  # once each: two methods may have equal settings in a cell
    to_do = [run for run in runs if run.key not in done]
    print(f"{len(runs)} runs, {len(runs) - len(to_do)} of them done before. Results: {results}", flush=True)
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    results.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, begin, (threads,)) as pool, results.open("a") as out:
        futures = [pool.submit(work, run) for run in to_do]
        failed: list[BaseException] = []
        try:
            for count, future in enumerate(as_completed(futures), 1):
                if future.cancelled():
                    continue
                if (error := future.exception()) is not None:
                    failed.append(error)
                    cancel(futures)
                    continue
                line = future.result()
                out.write(json.dumps(line) + "\n")
                out.flush()
                print(f"{count}/{len(to_do)} {told(line)}", flush=True)
        finally:
            cancel(futures)  # so that a failed write also ends the grid, without waiting for all other runs
    if failed:
        raise failed[0]


def cancel(futures: Sequence["Future[Line]"]) -> None:
    """Cancels the runs that no process has been given yet."""
    for future in futures:
        future.cancel()


def begin(threads: int) -> None:
    """Silences a worker, and ends it if its parent dies, because then nobody can take its result."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()


def read_results(paths: Sequence[Path]) -> list[Line]:
    """The lines of several files. Of a run that is in several of them, the last line counts."""
    lines = [json.loads(text) for path in paths for text in path.read_text(encoding="utf-8").splitlines()]
    return list({line["key"]: line for line in lines}.values())


def machine() -> str:
    """The name of the GPU, or of the processor if there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def made_with() -> Line:
    """The device and the library versions, for a line."""
    return {"device": machine(), "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}


def train_and_test(trainer: Trainer, test: Dataset) -> tuple[float, PredictionOutput]:
    """Returns the seconds that training took, and the trained model's predictions for the test rows."""
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return seconds, trainer.predict(test)
