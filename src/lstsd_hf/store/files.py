"""Files that appear whole or not at all, also on file systems that lack some operations.

A file is written under a temporary name, flushed to disk, and renamed. Some file systems have no hard links, locks or
read-only files, or cannot flush a folder's entry. Each of these is optional: if it fails, the run warns once.
"""

import errno
import os
import shutil
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import xxhash

from .errors import StoreError

CHUNK_BYTES = 1 << 20  # glibc would keep the memory of buffers from 32 MB on

_LONGEST_NAME = 255  # bytes, on nearly every file system
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNKNOWN_TO_THE_FILE_SYSTEM = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_warned: set[str] = set()


def warn_anew() -> None:
    """Forgets earlier warnings, at the start of a run or a new store, so that `warn_once` warns again."""
    _warned.clear()


def warn_once(kind: str, message: str) -> None:
    """Warns of something that the file system lacks, once for each kind in a run."""
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(message, stacklevel=3)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError that names the file that could not be written and the cause."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.filename not in (None, str(path), str(temporary_name(path))):
            cause += f" ({error.filename})"
        advice = " Free some space; earlier" if error.errno in _FULL else " Earlier"
        raise StoreError(f"{path} could not be written: {cause}.{advice} files are intact.") from error


# ---- reading


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is not a regular file: a FIFO would block, and a device has no end.
    """
    wait_for_nobody = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait_for_nobody))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises OSError if it is larger, or as `open_regular`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= limit and len(content := file.read(limit + 1)) <= limit:
            return content
    raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))


def checksum_of(path: Path) -> str:
    """The 128-bit xxh3 of a file's content, in hexadecimal. Raises OSError as `open_regular`."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# ---- writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name to write a file under, then publishes it as `path`. After an error nothing of it stays.

    Raises:
        StoreError: it could not be written; an earlier file at `path` is unchanged.
    """
    temporary = temporary_name(path)
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)  # left by a crash, or a link, whose target would be overwritten
            yield temporary
            publish(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process is within this context for the folder; where there are no locks, it goes on."""
    if sys.platform == "win32":  # no folder can be locked there
        yield
        return
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system may lock no folder
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)  # which ends the lock


def temporary_name(path: Path) -> Path:
    """The name of a file while it is written; a hash stands for a name that would become too long."""
    name = os.fsencode(path.name)
    if len(name) > _LONGEST_NAME - len("..tmp"):
        return path.with_name(f".{xxhash.xxh3_64_hexdigest(name)}.tmp")
    return path.with_name(f".{path.name}.tmp")


def publish(temporary: Path, final: Path) -> None:
    """Flushes a finished file and renames it in one atomic step, replacing an earlier file of that name."""
    with temporary.open("rb") as file:
        flush(file.fileno())
    os.replace(temporary, final)
    with _done_without(f"to flush the folder {final.parent}", "A power cut may undo the last rename in it."):
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def flush(file: int) -> None:
    """Flushes a file's content to disk."""
    with _done_without("to flush a file", "A power cut may lose what was written last.", _is_unknown):
        os.fsync(file)


def protect(path: Path) -> None:
    """Makes a file read-only, if the file system can."""
    with _done_without(f"to make {path} read-only", "Leave it as it is all the same."):
        path.chmod(0o444)


def link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy if the file system refuses links."""
    source = source.resolve()  # else a symbolic link, as in huggingface_hub's cache, would be linked itself
    try:
        os.link(source, target)
        return
    except OSError as error:
        refusal = error.strerror
    with open_regular(source) as original, target.open("xb") as copy:
        shutil.copyfileobj(original, copy, CHUNK_BYTES)
    protect(target)
    warn_once(
        "links", f"{target} is a copy, because hard links are refused ({refusal}): checkpoints take more disk space."
    )


def copy_bytes(source: BinaryIO, target: BinaryIO, count: int) -> None:
    """Copies the next `count` bytes."""
    while count:
        chunk = source.read(min(count, CHUNK_BYTES))
        if not chunk:
            raise OSError(errno.EIO, "the file that is copied became shorter")
        count -= target.write(chunk)


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Deletes a file that nothing needs any more, if the file system can: it may refuse while another reads the file.

    Raises:
        StoreError: the disk fails.
    """
    with writing(path), _done_without(f"to delete {path}", "It takes disk space, and nothing else reads it."):
        path.unlink(missing_ok=True)


def _is_unknown(error: OSError) -> bool:
    return error.errno in _UNKNOWN_TO_THE_FILE_SYSTEM


def _is_no_fault(error: OSError) -> bool:
    """Whether an operation is merely unsupported or not allowed, rather than the disk failing or full."""
    return error.errno not in _FULL | {errno.EIO}


@contextmanager
def _done_without(
    what: str, consequence: str, is_optional: Callable[[OSError], bool] = _is_no_fault
) -> Iterator[None]:
    """Warns that an optional operation was refused, instead of raising OSError."""
    try:
        yield
    except OSError as error:
        if not is_optional(error):
            raise
        warn_once(consequence, f"The file system refuses {what} ({error.strerror}). {consequence}")
