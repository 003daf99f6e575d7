"""Locks the folders of a run for one run at a time, and moves the stores of earlier runs aside.

A store that was moved aside is named `<name>-<number>`; the newest has the highest number. Its manifest says that it
was moved, so a store to which the user gave such a name is never touched. A store is kept if it holds a sealed epoch
that is not, byte for byte, in a newer store. So the predictions of a whole epoch are never deleted. The newest is also
kept if the run starts anew. No older store is kept for an epoch that was cut short: otherwise a run that is killed
again and again before its first checkpoint would leave one at each start.
"""

import errno
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from transformers.utils import logging

from ..store import LogitsStore, StoreError
from ..store.files import remove, warn_anew, warn_once, writing
from ..store.folder import is_unfinished, remove_unfinished_copy

logger = logging.get_logger(__name__)

# Locked for a run's output_dir. A push to the Hub leaves out names with a leading underscore.
RUN_LOCK = "_run.lock"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def lock(logits_dir: Path, output_dir: Path) -> list[BaseFileLock]:
    """Locks the folders of a run: the store's, and that of the checkpoints. `unlock` unlocks them.

    Raises:
        StoreError: another run uses one of them, or it cannot be written to.
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
    """Locks a file; returns [] if the file system has no locks. Raises StoreError if another run holds the lock, or
    the file is something else.
    """
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    while True:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            # First, because the lock library takes some errors that can happen here for a lock of another process.
            is_new = not os.path.lexists(file)
            opened = os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
            size = os.fstat(opened).st_size
            os.close(opened)
        if size:  # it would be emptied, and removed in the end
            raise StoreError(f"{file} is not empty, so it is no lock of {what}. Move it, or name another folder.")
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"Another run uses {what}: expected one run in one folder. Wait for it, or name another output_dir, "
                "and another logits_dir if you have named one."
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                if is_new:  # else it may be the lock of another run
                    with suppress(OSError):
                        file.unlink(missing_ok=True)
                raise StoreError(f"{file} could not be locked: {error.strerror}.") from error
            file.unlink(missing_ok=True)
            warn_once(
                "locks", f"The file system of {file.parent} has no locks: make sure that no second run uses {what}."
            )
            return []
        if os.path.exists(file):
            return [lock]
        lock.release()  # the run that had it removed the file after we had opened it


def unlock(held: list[BaseFileLock]) -> None:
    """Unlocks a run's folders, and removes the lock files."""
    while held:
        lock = held.pop()
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def move_aside(path: Path) -> Path | None:
    """Renames an earlier run's store to `<name>-<number>`.

    Returns:
        The new path; None if there was nothing to move.

    Raises:
        StoreError: the folder holds something that is not a store, or cannot be renamed.
    """
    with writing(path):
        remove_unfinished_copy(path.with_name(f"{path.name}.tmp"))  # if the run was killed while it copied
        if not path.exists() or (path.is_dir() and (not any(path.iterdir()) or is_unfinished(path))):
            return None
        if not (path / "open").is_dir() and not (path / "store.json").is_file():  # the Hub keeps no empty folders
            raise StoreError(
                f"{path} holds something that is not a logits store: expected a folder that is new, empty, or an "
                "earlier run's. Name another logits_dir."
            )
        aside = path.with_name(f"{path.name}-{max(_numbered(path), default=0) + 1}")
        os.rename(path, aside)
        for temporary in aside.glob(".*.tmp"):  # half-written files: the run was killed
            temporary.unlink()
    logger.warning(f"{path} holds the predictions of an earlier run: they were moved to {aside}.")
    try:
        LogitsStore.open(aside).mark_aside()
    except StoreError as error:
        logger.warning(f"{aside} is kept for good: {error}")
    return aside


def tidy(path: Path, aside: Path, restored: LogitsStore | None, teachers: Collection[Path] = ()) -> None:
    """Removes duplicates: older stores of which all epochs are in newer ones, and such epochs of the one just moved.

    Otherwise a run that is interrupted again and again would hold on to the disk space of all that it ever predicted.

    Args:
        path: The run's store.
        aside: Where the store before it is now.
        restored: The run's store if a checkpoint's was restored: what it holds need not be kept elsewhere. Else None.
        teachers: Stores that teach in this run. They are not touched.
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
        except (StoreError, OSError) as error:  # nothing depends on it, so it may stay
            logger.warning(f"{asides[number]} is kept as it is: {error}")
            continue
        kept |= set(checksums.values())


def _asides(path: Path) -> dict[int, Path]:
    """The folders with the name of a store that was moved aside from `path`, by number."""
    return {number: found for number, found in _numbered(path).items() if found.is_dir()}


def _numbered(path: Path) -> dict[int, Path]:
    """All that has the name of a store that was moved aside from `path`, by number."""
    pattern = re.compile(re.escape(path.name) + "-([1-9][0-9]*)")
    found = ((pattern.fullmatch(other.name), other) for other in path.parent.iterdir())
    return {int(match[1]): other for match, other in found if match is not None}
