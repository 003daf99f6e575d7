"""The manifest of a store, `store.json`: what the store is for, and a checksum of each file that never changes again.

format, version   what wrote it
num_samples, row_shape, dtype, fingerprint      see `LogitsStore`
labels            the checksum of labels.npy, or null
sealed            by epoch: the checksum of epoch-<epoch>.npy
statistics        by "<name> <epoch>": the checksum of <name>-<epoch>.npy
open              in a copy, by "<epoch> <rank>": the size of each journal
note              in a copy: what `LogitsStore.copy` was told
checksum          of all the rest
"""

import json
from pathlib import Path
from typing import Any

import xxhash

from .errors import StoreCorruptionError, StoreError
from .files import publish

FORMAT = "lstsd-logits"
VERSION = 1
NAME = "store.json"


def new_manifest(num_samples: int, row_shape: list[int], dtype: str, fingerprint: str) -> dict[str, Any]:
    """The manifest of a store that holds nothing yet."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "num_samples": num_samples,
        "row_shape": row_shape,
        "dtype": dtype,
        "fingerprint": fingerprint,
        "labels": None,
        "sealed": {},
        "statistics": {},
        "open": {},
        "note": {},
    }


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of the store in the folder `path`."""
    temporary = path / f".{NAME}.tmp"
    temporary.write_text(json.dumps(manifest | {"checksum": _checksum(manifest)}, indent=2) + "\n")
    publish(temporary, path / NAME)


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of the store in the folder `path`.

    Raises:
        StoreError: there is none.
        StoreCorruptionError: it is damaged, of another version, or not ours.
    """
    file = path / NAME
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} holds no logits store: {file.name} is missing.") from error
    except UnicodeDecodeError as error:
        raise StoreCorruptionError(f"{file} is damaged: {error}.") from error
    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreCorruptionError(f"{file} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreCorruptionError(f"{file} is no manifest of a logits store: expected format {FORMAT!r}.")
    if manifest.get("version") != VERSION:
        raise StoreCorruptionError(
            f"{file} is of version {manifest.get('version')!r}: expected {VERSION}. Use the lstsd_hf that wrote it."
        )
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum(manifest):
        raise StoreCorruptionError(f"{file} is damaged: its content does not fit its checksum {checksum!r}.")
    return {"statistics": {}, **manifest}  # stores of before 0.2 have none


def _checksum(manifest: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())
