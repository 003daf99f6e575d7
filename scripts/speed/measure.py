"""How the speed benchmark measures: ratios with intervals, trainings that take turns, fresh processes."""

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

# Read when a process starts: glibc then has one heap for all threads, and OpenMP one thread for each training. With
# these, pairs of equal steps differ half as much, because the machine's other work runs on another core.
STEADY = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_RESAMPLES = 2000
_DISK_BLOCK = 16 << 20


@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        section, what: The name of the line.
        unit: The unit of both medians.
        reference: What LSTSD is compared with.
        reference_median, lstsd_median: Medians over all repeats.
        ratio: The median over pairs measured side by side: of reference / LSTSD if `at_least`, else LSTSD / reference.
        low, high: The 95 % bootstrap interval of that median.
        repeats: The number of pairs.
        goal: The bound on the ratio; None or 0: there is no goal.
        at_least: Whether the goal is a lower bound; else it is an upper bound.
    """

    section: str
    what: str
    unit: str
    reference: str
    reference_median: float
    lstsd_median: float
    ratio: float
    low: float
    high: float
    repeats: int
    goal: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        if not self.goal:
            return None
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal


def compare(
    section: str,
    what: str,
    unit: str,
    reference: str,
    references: Sequence[float],
    lstsd: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Line:
    """The line of two series whose i-th figures were measured side by side."""
    old, new = np.asarray(references, float), np.asarray(lstsd, float)
    if not len(old):
        raise ValueError(f"{section}: {what}: nothing was timed. Expected more steps, or shorter turns.")
    ratios = old / new if at_least is not None else new / old
    draws = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return Line(
        section,
        what,
        unit,
        reference,
        float(np.median(old)),
        float(np.median(new)),
        float(np.median(ratios)),
        float(low),
        float(high),
        len(ratios),
        at_most if at_least is None else at_least,
        at_least is not None,
    )


def alternate(calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 3) -> dict[str, list[float]]:
    """The seconds of each call, in rounds of alternating order: A B, B A, A B..."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-warm_up, repeats):
        for name in list(calls) if repeat % 2 == 0 else reversed(calls):
            start = time.perf_counter()
            calls[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


# ---- trainings that take turns


class Turns:
    """Lets trainings in threads of one process run strictly one at a time, in rounds of alternating order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._left = list(names)  # of this round
        self._changed = threading.Condition()
        _keep_heap()

    def take(self, name: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left[0] == name)

    def pass_on(self) -> None:
        with self._changed:
            self._left.pop(0)
            if not self._left:
                self._names.reverse()
                self._left = list(self._names)
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """Removes a training from the rounds, during its own turn."""
        with self._changed:
            self._names.remove(name)
        self.pass_on()


def _keep_heap() -> None:
    """Makes glibc's heap never shrink, and serve large requests too.

    Otherwise it depends on what was freed before whether a large gradient comes from the heap or from the kernel, page
    by page: one of two equal trainings was 13 % slower than the other. Threads must share one heap for the same
    reason; see `STEADY`.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)


class TurnCallback(TrainerCallback):
    """Times a training in turns of `skip` untimed and then `timed` steps, from the end of one step to that of another.

    So a step includes the next batch, the forward and the backward pass, and the update. Data loader workers fetch
    batches ahead while another training has the turn, so the first steps of a turn, which use them, are skipped.

    Attributes:
        seconds: The time per step of each turn, without the first turn, in which the training starts.
    """

    def __init__(self, turns: Turns, name: str, timed: int, skip: int) -> None:
        self.seconds: list[float] = []
        self._turns, self._name, self._timed, self._skip = turns, name, timed, skip
        self._step, self._start, self._started = 0, 0.0, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step += 1
        position = self._step % (self._skip + self._timed)
        if position == 0:
            synchronize()
            if self._started:
                self.seconds.append((time.perf_counter() - self._start) / self._timed)
            self._started = True
            self._turns.pass_on()
            self._turns.take(self._name)
        if position == self._skip:
            synchronize()
            self._start = time.perf_counter()


def take_turns(
    trainings: Mapping[str, Callable[[TrainerCallback], None]], timed: int = 1, skip: int = 0, warm_up: int = 2
) -> dict[str, list[float]]:
    """Runs whole trainings turn by turn, and returns for each the seconds per step of its turns.

    Neighbouring turns are milliseconds to seconds apart, so other work on the machine slows both sides of a comparison
    alike.

    Args:
        trainings: Each builds a trainer with the callback, and trains. All must have the same number of steps.
        timed: The number of timed steps in a turn.
        skip: The number of untimed steps before them.
        warm_up: The number of turns to leave out at the start, besides the first.
    """
    turns = Turns(list(trainings))
    callbacks = {name: TurnCallback(turns, name, timed, skip) for name in trainings}

    def run(name: str) -> None:
        turns.take(name)
        try:
            trainings[name](callbacks[name])
        finally:
            turns.leave(name)

    with ThreadPoolExecutor(len(trainings)) as pool:
        for future in [pool.submit(run, name) for name in trainings]:
            future.result()
    return {name: callback.seconds[warm_up:] for name, callback in callbacks.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- memory, processes and the disk


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a module's function in a process that has only imported what trainings need; returns its result."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["lstsd_hf.trainer", "matplotlib.pyplot", "speed.sections"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


class MemoryCallback(TrainerCallback):
    """Keeps the peak of anonymous memory, which no file backs, over the ends of all steps."""

    def __init__(self) -> None:
        self.anonymous = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.anonymous = max(self.anonymous, process_memory("RssAnon"))

    def megabytes(self) -> dict[str, float]:
        """The peaks in MB: resident memory of this process, its anonymous part at the ends of steps, device memory."""
        peaks = {"host": process_memory("VmHWM"), "anonymous": self.anonymous}
        if torch.cuda.is_available():
            peaks["device"] = torch.cuda.max_memory_allocated()
        return {name: size / 1e6 for name, size in peaks.items()}


def process_memory(name: str) -> int:
    """The value of a line of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) << 10


def disk_seconds(folder: Path, size: int) -> float:
    """The seconds to write `size` bytes to one file sequentially, from the first write to the last flush."""
    block = memoryview(np.random.default_rng(0).bytes(_DISK_BLOCK))
    path = folder / "disk"
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for left in range(size, 0, -_DISK_BLOCK):
            file.write(block[:left])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def forget(path: Path) -> float:
    """Asks the kernel to drop a file's pages from its cache; returns the share of 64 sampled pages that it kept."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(fd).st_size
        return sum(_is_cached(fd, offset) for offset in range(0, size, max(size // 64, 1))) / 64
    finally:
        os.close(fd)


def _is_cached(fd: int, offset: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True


@functools.cache
def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
