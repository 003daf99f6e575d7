"""Files that appear whole or not at all: a temporary name, a flush to disk, a rename."""

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from .errors import StoreError

CHUNK_BYTES = 1 << 20  # from 32 MB on glibc would keep what it took
_FLUSH_BYTES = 16 << 20

# Another disk, a file system without hard links, or too many of them.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class NpyWriter:
    """Writes a .npy file of a shape that is known ahead in one sweep, which the disk follows at once."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        self._disk = ThreadPoolExecutor(1)
        self._digest = xxhash.xxh3_128()
        self._unflushed, self._flushes = 0, list[Future[None]]()
        head = BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        self._write(head.getbuffer())

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Appends an array, contiguous, of the file's dtype or of as many raw bytes."""
        if rows.size:
            self._write(rows.view(np.uint8).reshape(-1).data if rows.dtype.kind == "V" else rows.data.cast("B"))

    def _write(self, data: memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._unflushed += data.nbytes
        if self._unflushed >= _FLUSH_BYTES:
            self._file.flush()
            self._flushes.append(self._disk.submit(os.fsync, self._file.fileno()))
            self._unflushed = 0

    def finish(self) -> str:
        """Waits for the disk, and returns the checksum of the file."""
        self._file.flush()
        for flush in self._flushes:
            flush.result()
        return self._digest.hexdigest()

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.shutdown()
        self._file.close()


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
