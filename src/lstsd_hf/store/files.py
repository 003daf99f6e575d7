"""Files that appear whole or not at all: a temporary name, a flush to disk, a rename."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from .errors import StoreError

CHUNK_BYTES = 1 << 20  # from 32 MB on glibc would keep what it took

# Another disk, a file system without hard links, or too many of them.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError that names the file that could not be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. Free some space; earlier files are intact."
        ) from error


def publish(temporary: Path, final: Path) -> None:
    """Gives a finished file its name: on disk, in one instant, over an earlier file of that name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checksum_of(path: Path) -> str:
    """xxh3 of a file's content, 128 bits, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy where the file system has no links."""
    try:
        os.link(source.resolve(), target)  # of a link, as in huggingface_hub's cache, it would make another link
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def copy_bytes(source: BinaryIO, target: BinaryIO, count: int) -> None:
    """Copies the next `count` bytes."""
    while count:
        count -= target.write(source.read(min(count, CHUNK_BYTES)))
