"""The sections of the speed benchmark; each yields the lines that it measures."""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lstsd_hf import LogitsStore

from .many_rows import Kind, seal_and_read
from .measure import Line, alternate, compare, disk_seconds, forget, in_fresh_process, take_turns
from .processes import side_by_side
from .rivals import FilePerSample, RowByRow
from .workload import Setting, make_checkpoint, peak_memory, trainings

_BATCH = 256
_PREFETCHED = 6  # at least as many batches as 2 workers and the loader fetch ahead
_STEPS_TO_PEAK = 10
_IN_A_ROW = 10  # the first call after a thousand system calls of a rival is slow
_IMAGES_PER_SECOND = 3000
_STEP_GOALS = {"BERT-base": 1.01, "MiniLM-L6": 1.01, "two-layer": 1.03}


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        folder: Where everything is written; on the disk to measure.
        turns: The number of timed turns for each size of model.
        block: The number of timed steps in a turn, in cases where a turn has more than one.
        tokens: The number of tokens in a row.
        repeats: The number of repeats of calls that take microseconds.
        memory_repeats: The number of measurements of each memory peak, each in its own process.
        small: The number of rows of the stores with few classes, in section `store`; at least 4096.
        large: The number of rows of the store with 1000 classes, in section `store`; at least 4096.
        epoch: The number of rows of the epoch, of 1000 classes, that section `growth` seals.
        samples: The sizes of the training set in section `growth`.
        ragged: The numbers of samples of the stores in section `rows`.
        vocabularies: The sizes of the language models' vocabularies in section `rows`.
        longest: The largest number of tokens of a sample in section `rows`.
        brief: Whether to time steps only, of few settings in `step` and `rows`.
    """

    folder: Path
    turns: dict[str, int] = field(default_factory=lambda: {"two-layer": 200, "MiniLM-L6": 60, "BERT-base": 40})
    block: int = 5
    tokens: int = 32
    repeats: int = 1000
    memory_repeats: int = 3
    small: int = 1_000_000
    large: int = 200_000
    epoch: int = 1_280_000
    samples: tuple[int, ...] = (10_000, 1_000_000, 10_000_000, 100_000_000)
    ragged: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    vocabularies: tuple[int, ...] = (32_000, 150_000)
    longest: int = 512
    brief: bool = False

    def setting(self, size: str, batch: int, classes: int, workers: int = 0, folder: str = "run") -> Setting:
        setting = Setting(
            self.folder / folder, size=size, batch=batch, classes=classes, tokens=self.tokens, workers=workers
        )
        turn = self.turn(workers)
        turns = max(self.turns[size] // (2 * self.block), 2) if workers else self.turns[size]
        steps = (turns + turn["warm_up"] + 1) * (turn["timed"] + turn["skip"])
        return replace(setting, steps=steps, samples=steps * batch)

    def turn(self, workers: int) -> dict[str, int]:
        """Arguments of `take_turns`. A turn is one step, or a block of them if a GPU or workers run ahead."""
        timed = self.block if torch.cuda.is_available() or workers else 1
        return {"timed": timed, "skip": _PREFETCHED if workers else 0, "warm_up": 0 if workers else 2}


def milliseconds(seconds: list[float]) -> list[float]:
    return [1e3 * value for value in seconds]


# ---- whole trainings


def step(scale: Scale) -> Iterator[Line]:
    """Step time and peak memory of LSTSD over those of the plain Trainer."""
    control = scale.setting("two-layer", 8, 2)
    make_checkpoint(control)
    seconds = take_turns(trainings(control, ("plain", "plain again")), **scale.turn(0))
    yield compare(
        "step",
        "control: plain Trainer twice",
        "ms",
        "plain Trainer",
        milliseconds(seconds["plain"]),
        milliseconds(seconds["plain again"]),
    )
    grid = [("BERT-base", 8, 3, 0)]
    if torch.cuda.is_available():
        grid = list(product(["BERT-base"], (8, 32), (2, 3, 1000), (0, 2)))
    grid += product(("MiniLM-L6", "two-layer"), (8, 32), (2, 3, 1000), (0, 2))
    if scale.brief:
        grid = [*product(scale.turns, (32,), (2,), (0,)), ("MiniLM-L6", 32, 1000, 0)]
    for size, batch, classes, workers in grid:
        setting = scale.setting(size, batch, classes, workers)
        make_checkpoint(setting)
        what = f"{size}, batch {batch}, {classes} classes, {workers} workers"
        seconds = take_turns(trainings(setting, ("plain", "lstsd")), **scale.turn(workers))
        plain, lstsd = milliseconds(seconds["plain"]), milliseconds(seconds["lstsd"])
        yield compare("step", what, "ms", "plain Trainer", plain, lstsd, at_most=_STEP_GOALS[size])
        if (batch, classes, workers) == (8, 3, 0):  # never in a brief run
            yield from memory(scale, setting, "step", f"{size}, batch 8", "plain", at_most=1.01)


def memory(
    scale: Scale,
    setting: Setting,
    section: str,
    what: str,
    reference: str,
    *,
    kinds: tuple[str, ...] = ("host", "device"),
    at_most: float | None = None,
) -> Iterator[Line]:
    """Memory peaks of two short trainings, each run in a fresh process; see `MemoryCallback` for the kinds."""
    setting = replace(setting, steps=_STEPS_TO_PEAK)
    peaks: dict[str, list[dict[str, float]]] = {reference: [], "lstsd": []}
    for repeat in range(scale.memory_repeats):
        for name in list(peaks) if repeat % 2 == 0 else reversed(peaks):
            peaks[name].append(in_fresh_process(peak_memory, setting, name))
    for kind in kinds:
        if kind in peaks["lstsd"][0]:  # without a device there is no such kind
            old, new = ([peak[kind] for peak in peaks[name]] for name in (reference, "lstsd"))
            yield compare(section, f"{what}: {kind} memory", "MB", reference, old, new, at_most=at_most)


def instead(scale: Scale) -> Iterator[Line]:
    """LSTSD compared with what people do instead."""
    for size in ("MiniLM-L6", "two-layer"):
        setting = scale.setting(size, 32, 3)
        make_checkpoint(setting)
        names = ("snapshots", "lstsd") if size != "two-layer" else ("snapshots", "lstsd", "table", "files")
        seconds = take_turns(trainings(setting, names), **scale.turn(0))
        for name in names:
            if name != "lstsd":
                goal = 1.5 if name == "snapshots" else 0.0
                old, new = milliseconds(seconds[name]), milliseconds(seconds["lstsd"])
                yield compare("instead", f"step, {size}, batch 32", "ms", name, old, new, at_least=goal)
        yield from memory(scale, setting, "instead", f"{size}, batch 32", "snapshots")

    samples, classes, batch = 10_000, 3, 32
    store = new_store(scale.folder / "store", samples, classes)
    files = FilePerSample(scale.folder / "files", samples, classes)
    table = RowByRow(samples, classes)
    rng = np.random.default_rng(0)
    logits = torch.randn(batch, classes)
    ids = torch.from_numpy(rng.permutation(samples)[:batch])

    def with_store() -> None:
        store.read(0, ids.numpy())
        store.read(1, ids.numpy())
        store.record(2, ids.numpy(), logits.numpy())

    def with_table(table: RowByRow | FilePerSample) -> None:
        table.look_up(ids)
        table.keep(ids, logits)

    calls = {"store": with_store, "table": lambda: with_table(table), "files": lambda: with_table(files)}
    in_a_row = {name: lambda call=call: [call() for _ in range(_IN_A_ROW)] for name, call in calls.items()}
    seconds = alternate(in_a_row, max(scale.repeats // 10, 10))
    for name, goal in (("table", 0.0), ("files", 100.0)):
        old, new = ([1e6 * value / _IN_A_ROW for value in seconds[key]] for key in (name, "store"))
        what = f"both teachers and a record, 32 x 3, {_IN_A_ROW} in a row"
        yield compare("instead", what, "us", name, old, new, at_least=goal)
    store.close()
    shutil.rmtree(scale.folder / "store")
    shutil.rmtree(scale.folder / "files")


# ---- the store alone


def new_store(path: Path, samples: int, classes: int, epochs: int = 2) -> LogitsStore:
    shutil.rmtree(path, ignore_errors=True)
    made = LogitsStore.create(path, samples, (classes,), "float16", "benchmark")
    rng = np.random.default_rng(0)
    at_once = max(1, (1 << 22) // classes)
    for epoch in range(epochs):
        for start in range(0, samples, at_once):
            ids = np.arange(start, min(start + at_once, samples))
            made.record(epoch, ids, rng.standard_normal((len(ids), classes), np.float32), step=start)
        made.seal(epoch)
    return made


def record_epoch(made: LogitsStore, epoch: int) -> None:
    """Records every sample once in random order, as training does."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((_BATCH, *made.row_shape), np.float32)
    ids = rng.permutation(made.num_samples)
    for start in range(0, len(ids), _BATCH):
        few = ids[start : start + _BATCH]
        made.record(epoch, few, logits[: len(few)], step=start)
    made.close()


def store(scale: Scale) -> Iterator[Line]:
    """The store compared with numpy copies, and with the disk."""
    for classes in (2, 3, 10, 1000):
        samples = scale.large if classes == 1000 else scale.small
        path = scale.folder / "store"
        made = new_store(path, samples, classes)
        in_memory = np.load(path / "epoch-0000.npy")
        for batch in (32,) if classes == 3 else (32, 256, 4096):
            yield from reads_and_records(scale, made, in_memory, batch)
        if classes in (3, 1000):
            yield from opening(scale, made, in_memory.nbytes)
        made.close()
        shutil.rmtree(path)


def reads_and_records(
    scale: Scale, made: LogitsStore, in_memory: npt.NDArray[np.float16], batch: int
) -> Iterator[Line]:
    samples, classes = in_memory.shape
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(samples)[:batch] for _ in range(20)]
    logits = rng.standard_normal((batch, classes), np.float32)
    turn = 0

    def ids() -> npt.NDArray[np.int64]:
        nonlocal turn
        turn = (turn + 1) % len(drawn)
        return drawn[turn]

    def neighbours() -> None:
        start = ids()[0] % (samples - batch + 1)
        in_memory[start : start + batch].copy()

    calls: dict[str, Callable[[], object]] = {
        "neighbours": neighbours,
        "copy": lambda: in_memory.take(ids(), axis=0),
        "read": lambda: made.read(0, ids()),
        "record": lambda: made.record(2, ids(), logits),
    }
    repeats = max(scale.repeats * 32 // batch, 10) if classes == 1000 else scale.repeats
    seconds = alternate(calls, repeats, warm_up=len(drawn))
    nearest, old, read, record = ([1e6 * value for value in seconds[name]] for name in calls)
    goal = 2.0 if (batch, classes) == (256, 1000) else None
    what = f"{batch} x {classes}"
    yield compare("store", f"read {what}", "us", "numpy copy of these rows", old, read, at_most=goal)
    yield compare("store", f"read {what}", "us", "numpy copy of a slice", nearest, read)
    yield compare("store", f"record {what}", "us", "numpy copy of a slice", nearest, record)
    if (batch, classes) == (32, 3):
        yield compare("store", f"record {what}", "us", "20 us", [20.0] * len(record), record, at_most=1.0)
    if (batch, classes) == (256, 1000):
        made.close()  # mapped pages would stay in the cache
        for cold in (False, True):
            yield first_reads(made.path, ids, cold)


def first_reads(path: Path, ids: Callable[[], npt.NDArray[np.int64]], cold: bool) -> Line:
    """Opening a store and reading pages new to it, compared with the same through numpy's memory map."""
    file = path / "epoch-0000.npy"
    calls: dict[str, Callable[[npt.NDArray[np.int64]], object]] = {
        "numpy": lambda rows: np.load(file, mmap_mode="r")[rows],
        "store": lambda rows: LogitsStore.open(path).read(0, rows),
    }
    kept = 0.0
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(10):
        wanted = ids()
        for name, call in calls.items():
            if cold:
                kept = max(kept, forget(file))
            seconds[name] += alternate({"": functools.partial(call, wanted)}, 1, warm_up=0)[""]
    cache = f"cold cache ({kept:.0%} of the file stayed in it)" if cold else "hot cache"
    what = f"open and read {len(ids())} rows, {cache}"
    return compare("store", what, "ms", "numpy memmap", *(milliseconds(seconds[name]) for name in seconds))


def opening(scale: Scale, made: LogitsStore, size: int) -> Iterator[Line]:
    """Opening a store, resuming in a journal of many blocks, and sealing it."""
    path, classes = made.path, made.row_shape[0]
    some = np.arange(32)
    calls: dict[str, Callable[[], object]] = {
        "numpy": lambda: np.load(path / "epoch-0000.npy", mmap_mode="r")[some],
        "store": lambda: LogitsStore.open(path).read(0, some),
    }
    seconds = alternate(calls, max(scale.repeats // 10, 5))
    old, new = ([1e6 * value for value in seconds[name]] for name in calls)
    what = f"open and read 32 rows of {made.num_samples:,} x {classes}"
    yield compare("store", what, "us", "numpy memmap", old, new)
    made.close()
    for journal in (path / "open").iterdir():
        journal.unlink()

    resumed: dict[str, list[float]] = {"bytes": [], "store": []}
    sealed: dict[str, list[float]] = {"disk": [], "store": []}
    for epoch in range(2, 2 + max(scale.memory_repeats, 1)):
        record_epoch(made, epoch)
        journal = made.journal_path(epoch, 0)

        def go_on(epoch: int = epoch) -> None:
            opened = LogitsStore.open(path)
            opened.record(epoch, some, np.zeros((len(some), classes), np.float32), step=1 << 40)
            opened.close()

        for name, values in alternate({"bytes": journal.read_bytes, "store": go_on}, 3, warm_up=1).items():
            resumed[name] += values
        sealed["disk"].append(max(disk_seconds(path, size), size / 1e9))
        sealed["store"] += alternate({"": lambda epoch=epoch: made.seal(epoch)}, 1, warm_up=0)[""]
    what = f"go on in a journal of {-(-made.num_samples // _BATCH):,} blocks, {size / 1e6:.0f} MB"
    yield compare("store", what, "ms", "read of its bytes", *map(milliseconds, resumed.values()))
    what = f"seal {made.num_samples:,} x {classes}: {size / 1e9 / float(np.median(sealed['store'])):.2f} GB/s"
    goal = 1.0 if classes == 1000 else None  # for small rows the cost is per batch, not per byte
    yield compare("store", what, "ms", "1 GB/s, or the disk", *map(milliseconds, sealed.values()), at_most=goal)


# ---- growth, and processes


def growth(scale: Scale) -> Iterator[Line]:
    """Step time and memory from small training sets to large ones, and the end of a large epoch."""
    smallest: list[float] = []
    for samples in scale.samples:
        setting = replace(scale.setting("two-layer", 32, 2), samples=samples, by_index=True)
        setting = replace(setting, steps=min(setting.steps, setting.steps_per_epoch))
        make_checkpoint(setting)
        seconds = take_turns(trainings(setting, ("plain", "lstsd")), **scale.turn(0))
        plain, lstsd = milliseconds(seconds["plain"]), milliseconds(seconds["lstsd"])
        yield compare("growth", f"step, {samples:.0e} samples", "ms", "plain Trainer", plain, lstsd)
        smallest = smallest or lstsd
        pairs = min(len(smallest), len(lstsd))
        what = f"step, {samples:.0e} samples"
        reference = f"LSTSD at {scale.samples[0]:.0e}"
        yield compare("growth", what, "ms", reference, smallest[:pairs], lstsd[:pairs], at_most=1.2)
        once = replace(scale, memory_repeats=1)
        yield from memory(
            once, setting, "growth", f"{samples:.0e} samples", "plain", kinds=("anonymous",), at_most=1.01
        )
        shutil.rmtree(setting.folder)
    yield end_of_epoch(scale)


def end_of_epoch(scale: Scale) -> Line:
    """What sealing costs at the end of an epoch of images."""
    path, classes = scale.folder / "epoch", 1000
    made = LogitsStore.create(path, scale.epoch, (classes,), "float16", "benchmark")
    record_epoch(made, 0)
    size = scale.epoch * classes * 2
    disk = disk_seconds(path, size)
    [seconds] = alternate({"": lambda: made.seal(0)}, 1, warm_up=0)[""]
    shutil.rmtree(path)
    epoch_seconds = scale.epoch / _IMAGES_PER_SECOND
    budget = max(epoch_seconds / 100, disk)
    what = f"end of an epoch of {scale.epoch:,} x 1000: {seconds / epoch_seconds:.2%} of it at {_IMAGES_PER_SECOND}/s"
    return compare("growth", what, "s", f"1 %, or the disk ({disk:.2f} s)", [budget], [seconds], at_most=1.0)


def processes(scale: Scale) -> Iterator[Line]:
    """Step time of LSTSD over that of plain DistributedDataParallel."""
    for size, count in product(("MiniLM-L6", "two-layer"), (1, 2)):
        setting = replace(scale.setting(size, 8, 3), processes=count)
        setting = replace(setting, samples=setting.steps * setting.batch * count)
        make_checkpoint(setting)
        seconds = side_by_side(setting, **scale.turn(0))
        plain, lstsd = milliseconds(seconds["plain"]), milliseconds(seconds["lstsd"])
        what = f"{size}, batch 8 in each of {count} processes"
        yield compare("processes", what, "ms", "plain DDP", plain, lstsd, at_most=1.02)


# ---- samples of many rows


def rows(scale: Scale) -> Iterator[Line]:
    """Step time and memory of taggers, spans and language models over the plain Trainer's; stores of their rows."""
    grid: list[tuple[str, Kind, int, int]] = [
        ("tokens, 9 classes", Kind("tokens", 9), 8, 512),
        ("spans", Kind("spans", 2), 8, 384),
    ]
    for vocabulary, k in product(scale.vocabularies, (8, 32)):
        grid.append((f"top {k} of {vocabulary:,}", Kind("vocabulary", vocabulary, k), 4, 64))
    for name, kind, batch, longest in grid:
        tokens = min(longest, scale.longest)
        what = f"{name}, {batch} x {tokens}"
        setting = replace(scale.setting("MiniLM-L6", batch, kind.classes), kind=kind, tokens=tokens)
        turns = max(scale.turns["MiniLM-L6"] // 3, 2)
        turn = scale.turn(0)
        steps = (turns + turn["warm_up"] + 1) * turn["timed"]
        setting = replace(setting, steps=steps, samples=steps * batch)
        make_checkpoint(setting)
        seconds = take_turns(trainings(setting, ("plain", "lstsd")), **turn)
        plain, lstsd = milliseconds(seconds["plain"]), milliseconds(seconds["lstsd"])
        yield compare("rows", f"step, {what}", "ms", "plain Trainer", plain, lstsd, at_most=1.03)
        if not scale.brief:
            yield from memory(scale, setting, "rows", what, "plain", at_most=1.05)
    if not scale.brief:
        yield from seal_and_read(scale.folder, scale.ragged, max(scale.memory_repeats, 2))


SECTIONS = {"step": step, "rows": rows, "instead": instead, "store": store, "growth": growth, "processes": processes}
