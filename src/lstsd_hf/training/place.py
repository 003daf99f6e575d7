"""The folders of a run: for one run at a time, with room for the store; what earlier runs left there goes aside.

Stores that were moved aside are `<name>-<number>`, the newest with the highest number, and their manifest says what
they are: a store that the user has named so is never touched. The newest is kept, and of older ones those that hold a
sealed epoch which is, byte for byte, in no newer store. So what was predicted in a whole epoch is never deleted; an
epoch that was cut short is kept in the newest only, because a run that is killed again and again before its first
checkpoint would else leave one at each start.
"""

import errno
import os
import re
from collections.abc import Collection
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from transformers.utils import logging

from ..store import LogitsStore, StoreError
from ..store.files import remove, warn_anew, warn_once, writing

logger = logging.get_logger(__name__)

# The file that is locked for a run's output_dir. A push to the Hub leaves out what begins with an underscore.
RUN_LOCK = "_run.lock"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def lock(logits_dir: Path, output_dir: Path) -> list[BaseFileLock]:
    """Takes the folders of a run, the store's and that of the checkpoints; `unlock` gives them back.

    Raises:
        StoreError: another run has one of them, or it cannot be written to.
    """
    warn_anew()
    held: list[BaseFileLock] = []
    try:
        held += lock_file(Path(f"{logits_dir}.lock"), f"the logits store at {logits_dir}")
        held += lock_file(output_dir / RUN_LOCK, f"the output_dir {output_dir}")
    except BaseException:
        unlock(held)
        raise
    return held


def lock_file(file: Path, what: str) -> list[BaseFileLock]:
    """A lock of the file; none where the file system has no locks. Raises StoreError where another run has it."""
    lock = FileLock(file, timeout=0)
    while True:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # First, because the lock library takes some of what can be wrong here for a lock of another process.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666))
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"Another run uses {what}: expected one run in one folder. Wait for it, or name another output_dir, "
                "and another logits_dir if you have named one."
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise StoreError(f"{file} could not be locked: {error.strerror}.") from error
            file.unlink(missing_ok=True)
            warn_once("locks", f"The file system of {file.parent} has no locks: see that no second run uses {what}.")
            return []
        if os.path.exists(file):
            return [lock]
        lock.release()  # the run that had it removed the file after we had opened it


def unlock(held: list[BaseFileLock]) -> None:
    """Gives a run's folders back, and leaves no file behind."""
    while held:
        lock = held.pop()
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def move_aside(path: Path) -> Path | None:
    """Renames an earlier run's store to `<name>-<number>`.

    Returns:
        The new name, or None where there was nothing.

    Raises:
        StoreError: the folder holds something that is not a store, or cannot be renamed.
    """
    with writing(path):
        remove(path.with_name(f"{path.name}.tmp"))  # a copy that was being made when the run was killed
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return None
        if not (path / "open").is_dir() and not (path / "store.json").is_file():  # the Hub keeps no empty folders
            raise StoreError(
                f"{path} holds something that is not a logits store: expected a folder that is new, empty, or an "
                "earlier run's. Name another logits_dir."
            )
        aside = path.with_name(f"{path.name}-{max(_asides(path), default=0) + 1}")
        os.rename(path, aside)
        for temporary in aside.glob(".*.tmp"):  # half-written: the run was killed
            temporary.unlink()
    logger.warning(f"{path} holds the predictions of an earlier run: they were moved to {aside}.")
    try:
        LogitsStore.open(aside).mark_aside()
    except StoreError as error:
        logger.warning(f"{aside} is kept for good: {error}")
    return aside


def tidy(path: Path, aside: Path, restored: LogitsStore | None, teachers: Collection[Path] = ()) -> None:
    """Removes what a store that was just moved aside, and older ones, hold a second time.

    A run that is interrupted again and again would else hold on to the disk space of all that it ever predicted.

    Args:
        path: The run's store.
        aside: Where the one before it is now.
        restored: The run's store, where it is a checkpoint's: what it holds need not be kept in another place.
        teachers: Stores that teach in this run, which stay as they are.
    """
    kept = set() if restored is None else set(restored.epoch_checksums.values())
    asides = _asides(path)
    for number in sorted(asides, reverse=True):
        try:
            store = LogitsStore.open(asides[number])
            if not store.is_aside or asides[number].resolve() in teachers:
                continue
            checksums = store.epoch_checksums
            shared = [epoch for epoch, checksum in checksums.items() if checksum in kept]
            is_newest = asides[number] == aside
            if len(shared) == len(checksums) and not (is_newest and restored is None):
                remove(asides[number])
            elif is_newest:
                for epoch in shared:
                    store.drop(epoch)
        except (StoreError, OSError) as error:  # nothing depends on it: it stays for whoever wants to look
            logger.warning(f"{asides[number]} is kept as it is: {error}")
            continue
        kept |= set(checksums.values())


def _asides(path: Path) -> dict[int, Path]:
    """The stores that were moved aside from here, by their number."""
    pattern = re.compile(re.escape(path.name) + "-([1-9][0-9]{0,8})")
    found = ((pattern.fullmatch(folder.name), folder) for folder in path.parent.iterdir() if folder.is_dir())
    return {int(match[1]): folder for match, folder in found if match is not None}
