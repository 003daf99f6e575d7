"""Kills training processes at chosen and at random moments, resumes them, and compares with a run that was not killed.

    python tests/fault_runs.py FOLDER KILLS [SEED]

A run is killed by SIGKILL before, after, or in the middle of one of its file-system events (a block appended to
a journal, an epoch's file written, a rename, a link, a flush, each part of a checkpoint), or at a random time. Every
second run is killed again while it resumes. Prints a line of JSON: the number of kills, in all and for each kind.
"""

import collections
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState

from lstsd_hf import LogitsStore, LSTSDTrainer, add_sample_ids
from lstsd_hf.store.journal import JournalWriter
from lstsd_hf.store.rows import FixedRows
from lstsd_hf.training.checkpoint import last_complete_checkpoint
from toys import config, rows, tiny_bert, weights


class Events:
    """Counts a run's file-system events, and kills the process at one of them."""

    def __init__(self, kill_at: int | None, when: str) -> None:
        self.names: list[str] = []
        self.kill_at, self.when = kill_at, when

    def watch(self, owner: Any, name: str, label: str, half: Callable[..., Any] | None = None) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.names.append(label)
            mine = len(self.names) - 1 == self.kill_at
            if mine and self.when != "after":
                if self.when == "middle" and half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, watched)


def install(events: Events) -> None:
    def half_a_block(self: Any, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])

    def half_an_epoch(self: Any, paths: Mapping[str, Path], journals: Any) -> None:
        for path in paths.values():
            path.write_bytes(b"\x93NU")

    def half_a_state(self: Any, path: str) -> None:
        Path(path).write_text('{"epoch": 1.0, "global_st')

    events.watch(JournalWriter, "_write", "record", half_a_block)
    events.watch(FixedRows, "write_sealed", "seal: write", half_an_epoch)
    events.watch(LogitsStore, "write_statistic", "statistic")
    events.watch(LogitsStore, "copy", "copy")
    events.watch(os, "replace", "replace")
    events.watch(os, "rename", "rename")
    events.watch(os, "link", "link")
    events.watch(os, "fsync", "flush")
    events.watch(shutil, "rmtree", "remove a folder")
    events.watch(Trainer, "_save_optimizer_and_scheduler", "save: optimizer")
    events.watch(Trainer, "_save_rng_state", "save: random state")
    events.watch(TrainerState, "save_to_json", "save: trainer state", half_a_state)


def train(folder: Path, events: Events) -> None:
    install(events)
    settings = config(
        folder,
        num_train_epochs=4,
        learning_rate=0.02,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
    )
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=add_sample_ids(rows(20)))
    try:
        resume = last_complete_checkpoint(str(folder))
    except ValueError:
        resume = None  # killed before the first checkpoint: a fresh run in a used folder
    trainer.train(resume_from_checkpoint=resume)
    torch.save(weights(trainer.model), folder / "weights.pt")


def in_child(folder: Path, events: Events, killed_after: float | None = None) -> int:
    """Runs `train` in a forked process, where all imports are done; returns its status as `os.waitpid` gives it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            train(folder, events)
            (folder / "events.json").write_text(json.dumps(events.names))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    reference = folder / "reference"
    start = time.monotonic()
    assert in_child(reference, Events(None, "")) == 0, (reference / "log.txt").read_text()
    duration = time.monotonic() - start
    names = json.loads((reference / "events.json").read_text())
    expected = torch.load(reference / "weights.pt")
    sealed = {file.name: file.read_bytes() for file in reference.glob("_logits/*.npy")}
    assert len(sealed) == 6  # four epochs, the labels, and the margin

    # Each kind of event takes its turn, at a random occurrence.
    kinds = collections.defaultdict(list)
    for position, name in enumerate(names):
        kinds[name].append(position)
    struck: collections.Counter[str] = collections.Counter()
    number = 0
    while sum(struck.values()) < kills:
        run = folder / f"run-{number}"
        for again in range(1 + number % 2):
            kind = [*kinds, "a random time"][(number + again * 5) % (len(kinds) + 1)]
            if kind == "a random time":
                status = in_child(run, Events(None, ""), killed_after=draw.uniform(0, duration))
            else:
                when = draw.choice(["before", "middle", "after"])
                status = in_child(run, Events(draw.choice(kinds[kind]), when))
                kind = f"{kind}, {when}"
            if os.WIFSIGNALED(status):  # a resumed run has fewer events, and may end first
                assert os.WTERMSIG(status) == signal.SIGKILL
                struck[kind] += 1
            else:
                assert status == 0, (run / "log.txt").read_text()[-4000:]
        status = in_child(run, Events(None, ""))
        assert status == 0, (run / "log.txt").read_text()[-4000:]
        assert torch.equal(torch.load(run / "weights.pt"), expected), f"{run}: other weights"
        found = {file.name: file.read_bytes() for file in run.glob("_logits/*.npy")}
        assert found == sealed, f"{run}: other predictions"
        LogitsStore.open(run / "_logits").verify()
        shutil.rmtree(run)
        number += 1
    print(json.dumps({"kills": sum(struck.values()), "of": dict(sorted(struck.items()))}))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
