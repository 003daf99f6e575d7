"""Plain .npy files: written sequentially, and mapped only after checks, because a stranger may have made them."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from .files import flush, open_regular, replacing

_FLUSH_BYTES = 16 << 20
_MOST_IN_A_ROW = 1 << 20  # numbers for each sample: more than labels or a statistic ever have

# The header that numpy writes in version 1.0 of the format, for the dtypes that a store holds.
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<|](?:b1|[iu][1248]|f[248]))', 'fortran_order': (False|True), "
    rb"'shape': \(([0-9, ]{0,300})\), \} *\n"
)


def write_array(path: Path, array: npt.NDArray[Any]) -> str:
    """Writes an array of numbers as a plain .npy file.

    Returns:
        The file's checksum.

    Raises:
        ValueError: the array holds anything but numbers, or has no dimension.
        StoreError: the file could not be written.
    """
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or not array.ndim:
        raise ValueError(f"{path.name}: an array of {array.dtype} and shape {array.shape}: expected rows of numbers.")
    # Not `numpy.save`, whose error does not give the cause when the disk is full.
    dtype = array.dtype.newbyteorder("<")
    with replacing(path) as temporary, NpyWriter(temporary, dtype, array.shape) as file:
        file.write(np.ascontiguousarray(array, dtype))
        return file.finish()


def map_array(path: Path) -> npt.NDArray[Any]:
    """Maps a file that `write_array` or a row layout wrote; only its header is read.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: it is not a .npy file of numbers, or its size is not what its header says.
    """
    with open_regular(path) as file:
        head = file.read(10)
        header = file.read(int.from_bytes(head[8:10], "little"))
        match = _HEADER.fullmatch(header)
        if head[:8] != _MAGIC or match is None:
            raise ValueError("expected a .npy file of numbers")
        kind, fortran_order, sizes = match.groups()
        dtype = np.dtype(kind.decode())
        shape = tuple(int(size) for size in sizes.split(b",") if size.strip())
        if not shape or max(shape) >= 1 << 62 or len(shape) > 31:
            raise ValueError(f"expected rows of numbers, found shape {shape}")
        offset, expected = file.tell(), file.tell() + prod(shape) * dtype.itemsize
        found = file.seek(0, 2)
        if found != expected:
            raise ValueError(f"expected {expected} bytes for shape {shape} of {dtype}, found {found}")
        if expected == offset:  # an empty array cannot be mapped
            return np.empty(shape, dtype)
        # A plain array: `take` costs half of what it does on a memmap.
        return np.asarray(np.memmap(file, dtype, "r", offset, shape, "F" if fortran_order == b"True" else "C"))


def map_rows(path: Path, rows: int) -> npt.NDArray[Any]:
    """Maps a file with a row for each sample. Raises as `map_array`, and ValueError for any other number of rows."""
    array = map_array(path)
    if len(array) != rows:
        raise ValueError(f"expected {rows} rows, found {len(array)}")
    if array.size > rows * _MOST_IN_A_ROW:
        raise ValueError(f"expected at most {_MOST_IN_A_ROW} numbers for each sample, found shape {array.shape}")
    return array


def reason_of(error: Exception) -> str:
    """An error's reason, without the file's name."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


class NpyWriter:
    """Writes a .npy file of a shape known in advance, sequentially, while a thread flushes it to disk.

    Writing 2.6 GB row by row in the order of recording, each row to its place, took ten times as long.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        self._disk = ThreadPoolExecutor(1)
        self._digest = xxhash.xxh3_128()
        self._unflushed, self._flushes = 0, list[Future[None]]()
        head = BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        self._write(head.getbuffer())

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Appends a contiguous array of the file's dtype, or of raw bytes (`numpy.void`)."""
        if rows.size:
            self._write(rows.view(np.uint8).reshape(-1).data if rows.dtype.kind == "V" else rows.data.cast("B"))

    def _write(self, data: memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._unflushed += data.nbytes
        if self._unflushed >= _FLUSH_BYTES:
            self._file.flush()
            self._flushes.append(self._disk.submit(flush, self._file.fileno()))
            self._unflushed = 0

    def finish(self) -> str:
        """Waits for the flushes, and returns the file's checksum."""
        self._file.flush()
        for flushed in self._flushes:
            flushed.result()
        return self._digest.hexdigest()

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.shutdown()
        self._file.close()
