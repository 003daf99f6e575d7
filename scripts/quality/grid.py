"""A grid of runs, several at a time; each that is finished is a line of the results file, and is not done again."""

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
        """Names all that the result depends on; the results file has it as "key"."""


R = TypeVar("R", bound=Keyed)


def train_all(
    runs: Iterable[R], work: Callable[[R], Line], results: Path, workers: int, told: Callable[[Line], str]
) -> None:
    """Does the runs that have no line yet, and writes each line as it comes.

    After an error no more runs are given to a process. Those that were, which are a few more than there are processes,
    end, and their lines are written. Then the error is raised.

    Args:
        runs: In the order in which they are begun.
        work: Does one, in a process of its own that does many; a function that can be pickled.
        results: The file that a line is appended to.
        workers: Runs at a time; each has its share of the cores.
        told: What is printed of a line.
    """
    done = {line["key"] for line in read_results([results])} if results.exists() else set()
    runs = list({run.key: run for run in runs}.values())  # once each: two methods may be the same one in a cell
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
            cancel(futures)  # a line that cannot be written ends the grid too, and not after all other runs
    if failed:
        raise failed[0]


def cancel(futures: Sequence["Future[Line]"]) -> None:
    """Takes back those that no process has been given yet."""
    for future in futures:
        future.cancel()


def begin(threads: int) -> None:
    """Makes a worker quiet, and lets it go when the grid was killed, and can no longer take its result."""
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
    """The lines of several files; a run that is in two of them counts once."""
    lines = [json.loads(text) for path in paths for text in path.read_text(encoding="utf-8").splitlines()]
    return list({line["key"]: line for line in lines}.values())


def machine() -> str:
    """What the runs are made on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def made_with() -> Line:
    """The machine and the versions, for a line."""
    return {"device": machine(), "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}


def train_and_test(trainer: Trainer, test: Dataset) -> tuple[float, PredictionOutput]:
    """The seconds that training took, and what the model predicts for the test rows afterwards."""
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    return seconds, trainer.predict(test)
