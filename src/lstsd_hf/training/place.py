"""The folder of a run's store: for one run at a time, with room for it; what an earlier run left there goes aside."""

import os
import shutil
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from transformers.utils import logging

from ..store import LogitsStore, StoreError

logger = logging.get_logger(__name__)


def lock(path: Path) -> BaseFileLock:
    """Takes the store's folder for this run; `unlock` gives it back.

    Raises:
        StoreError: another run has it.
    """
    held = FileLock(f"{path}.lock", timeout=0)
    while True:
        try:
            held.acquire()
        except Timeout as error:
            raise StoreError(
                f"Another run uses the logits store at {path}: expected one run in one folder. Wait for it, or "
                "name another output_dir or logits_dir."
            ) from error
        if os.path.exists(held.lock_file):
            return held
        held.release()  # the run that had it removed the file after we had opened it


def unlock(held: BaseFileLock) -> None:
    """Gives a store's folder back, and leaves no file behind."""
    if held.is_locked:
        Path(held.lock_file).unlink(missing_ok=True)
    held.release()


def move_aside(path: Path) -> Path | None:
    """Renames an earlier run's store to the first free `<name>-<number>`; nothing is deleted.

    Returns:
        The new name, or None where there was nothing.

    Raises:
        StoreError: the folder holds something that is not a store.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / "open").is_dir() and not (path / "store.json").is_file():  # the Hub keeps no empty folders
        raise StoreError(
            f"{path} holds something that is not a logits store: expected a folder that is new, empty, or an earlier "
            "run's. Name another logits_dir."
        )
    number = 1
    while (aside := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    os.rename(path, aside)
    logger.warning(f"{path} holds the predictions of an earlier run: they were moved to {aside}.")
    return aside


def discard_shared(aside: Path, saved: LogitsStore) -> None:
    """Drops from a store that was moved aside the epochs that the checkpoint `saved` holds; then the store, if empty.

    A run that is interrupted again and again would else hold on to the disk space of every epoch that it ever had.
    """
    try:
        store = LogitsStore.open(aside)
    except StoreError as error:  # the checkpoint does not need it: it stays as it is, for whoever wants to look
        logger.warning(f"{aside} is kept as it is: {error}")
        return
    kept = set(saved.sealed_epochs)
    for epoch in store.sealed_epochs:
        if epoch in kept:
            store.drop(epoch)
    if not store.sealed_epochs:
        shutil.rmtree(aside)


def refuse_full_disk(path: Path, needed: int) -> None:
    """Raises StoreError where the disk of the store's folder has fewer than `needed` bytes left."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise StoreError(
            f"The logits store at {path} will take about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
            "free: expected room for the whole run. Free some space, name a logits_dir on another disk, or set "
            "logits_retention='needed' or logits_dtype='float16'."
        )
