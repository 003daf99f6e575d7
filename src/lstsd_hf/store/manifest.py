"""The manifest of a store, `store.json`: what the store is for, and a checksum of each file that never changes again.

format, version   the name and the version of the file format
num_samples, row_shape, dtype, fingerprint      see `LogitsStore`
ids               if the store has ids.npy: its checksum
labels            the checksum of labels.npy, or null
label_offsets     if labels.npy has a label for each row of a sample: the checksum of labels.offsets.npy
label_changes     if labels were corrected: the corrections, oldest first, see `LogitsStore.relabel`
layout            if samples have any number of rows: the kind of rows, see `ragged`
texts             in a store of `lstsd train` on a file: by text column, the fingerprint of its texts
label_column      in such a store: the name of the file's label column; else null
source            in a store of `record_predictions`: what made the predictions, see `LogitsStore.source`
head              if it is known: what the rows stand for, see `LogitsStore.head`
sealed            by epoch: the checksum of epoch-<epoch>.npy
parts             by "<part> <epoch>": the checksum of epoch-<epoch>.<part>.npy
statistics        by "<name> <epoch>": the checksum of <name>-<epoch>.npy
log               by the number of entries: the checksum of log-<entries>.json; at most one
open              in a copy, by "<epoch> <rank>": the size of each journal
note              in a copy: the note given to `LogitsStore.copy`
aside             in a store that was moved aside: true
checksum          the checksum of all other fields

A checksum finds damage but does not protect against attack: whoever writes a manifest can also write a fitting
checksum. So every field is checked on reading, against `_EXPECTED`.
"""

import copy
import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import xxhash

from .errors import StoreCorruptionError, StoreError
from .files import read_regular, replacing

FORMAT = "lstsd-logits"
VERSION = 1
NAME = "store.json"
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}

_LARGEST = 4 << 20  # bytes; 10,000 epochs take a tenth of it
_LONGEST_TEXT = 1000
_MOST_VALUES = 1 << 28  # in a row; a limit of numpy
_MOST_DIMENSIONS = 31
_NUMBER = r"(0|[1-9][0-9]{0,9})"
_CHECKSUM = re.compile("[0-9a-f]{32}")
_PARTS: dict[str | None, tuple[str, ...]] = {  # by the kind of layout: the files of an epoch besides its values
    None: (),
    "ragged": ("offsets",),
    "top_k": ("offsets", "classes", "rest"),
}
_OPTIONAL: dict[str, Any] = {
    "ids": None,
    "label_offsets": None,
    "layout": {},
    "source": {},
    "head": "",
    "texts": {},
    "label_column": None,
    "parts": {},
    "log": {},
    "label_changes": [],
    "aside": False,
}


class Manifest(TypedDict):
    """The content of `store.json`, without format, version and checksum."""

    num_samples: int
    row_shape: list[int]
    dtype: str
    fingerprint: str
    ids: str | None
    labels: str | None
    label_offsets: str | None
    label_changes: list[dict[str, Any]]
    layout: dict[str, Any]
    source: dict[str, Any]
    head: str
    texts: dict[str, str]
    label_column: str | None
    sealed: dict[str, str]
    parts: dict[str, str]
    statistics: dict[str, str]
    log: dict[str, str]
    open: dict[str, int]
    note: dict[str, Any]
    aside: bool


def new_manifest(
    num_samples: int,
    row_shape: tuple[int, ...],
    dtype: str,
    fingerprint: str,
    layout: dict[str, Any],
    source: dict[str, Any],
) -> Manifest:
    """The manifest of an empty store.

    Raises:
        ValueError: a value is not allowed in a manifest.
    """
    manifest = Manifest(
        num_samples=num_samples,
        row_shape=list(row_shape),
        dtype=dtype,
        fingerprint=fingerprint,
        ids=None,
        labels=None,
        label_offsets=None,
        label_changes=[],
        layout=layout,
        source=source,
        head="",
        texts={},
        label_column=None,
        sealed={},
        parts={},
        statistics={},
        log={},
        open={},
        note={},
        aside=False,
    )
    wrong = _first_wrong(dict(manifest))
    if wrong is not None:
        raise ValueError(wrong)
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes the manifest of the store in the folder `path`.

    Raises:
        ValueError: a value is not allowed in a manifest, or the whole is too large to be read again.
        StoreError: it could not be written.
    """
    wrong = _first_wrong(dict(manifest))
    if wrong is not None:
        raise ValueError(f"{path / NAME} is not written: {wrong}")
    # Empty optional fields are left out, so that manifests stay the same when such a field is added to the format.
    held = {key: value for key, value in manifest.items() if key not in _OPTIONAL or value}
    content = {"format": FORMAT, "version": VERSION, **held}
    text = json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n"
    if len(text) > _LARGEST:
        raise ValueError(f"{path / NAME} is not written: expected at most {_LARGEST:,} bytes, found {len(text):,}.")
    with replacing(path / NAME) as temporary:
        temporary.write_text(text)


def read_manifest(path: Path) -> Manifest:
    """Reads the manifest of the store in the folder `path`.

    Raises:
        StoreError: there is no manifest, or it cannot be read.
        StoreCorruptionError: it is damaged, of another version, or not a manifest of a logits store.
    """
    file = path / NAME
    try:
        content = json.loads(read_regular(file, _LARGEST))
        checksum = content.pop("checksum", None) if isinstance(content, dict) else None
        found = _checksum(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} holds no logits store: {file.name} is missing.") from error
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        raise StoreCorruptionError(f"{file} is damaged: {error}.") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise StoreCorruptionError(f"{file} is no manifest of a logits store: expected format {FORMAT!r}.")
    version = content.pop("version", None)
    if version != VERSION or isinstance(version, (bool, float)):
        raise StoreCorruptionError(
            f"{file} is of version {shortened(version)}: expected {VERSION}. Use the lstsd_hf that wrote it."
        )
    if checksum != found:
        raise StoreCorruptionError(f"{file} is damaged: its content does not fit its checksum {shortened(checksum)}.")
    manifest = {**copy.deepcopy(_OPTIONAL), "statistics": {}, **content}  # stores from before 0.2 have no statistics
    wrong = _first_wrong(manifest)
    if wrong is not None:
        raise StoreCorruptionError(f"{file} is damaged: {wrong}")
    return Manifest(**manifest)  # type: ignore[typeddict-item]


def _checksum(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


# ---- what a manifest may hold


def shortened(value: Any) -> str:
    """A value of unknown origin as at most 100 printable characters, for a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"<{type(value).__name__}>"
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:101])
    return text if len(text) <= 100 else text[:99] + "…"


def is_whole(value: Any, low: int = 0, high: int = 2**63) -> bool:
    """Whether a value is an integer from `low` to `high`; True and 20.0 are not."""
    return type(value) is int and low <= value <= high


def is_text(value: Any) -> bool:
    """Whether a value is printable text, short enough for a message."""
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()


def refuse_epoch(epoch: Any, rank: Any = 0) -> None:
    """Raises ValueError unless an epoch, and the number of a process, are what the name of a file may have."""
    plain = (number.item() if isinstance(number, np.integer) else number for number in (epoch, rank))
    if not all(is_whole(number, high=2**32 - 1) for number in plain):
        raise ValueError(f"epoch={epoch!r}, rank={rank!r}: expected numbers from 0 to {2**32 - 1}.")


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(is_whole(size, 1, _MOST_VALUES) for size in value)
        and prod(value) <= _MOST_VALUES
    )


def _is_layout(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    top_k = value.keys() == {"kind", "vocabulary"} and value["kind"] == "top_k"
    return value in ({}, {"kind": "ragged"}) or (top_k and is_whole(value["vocabulary"], 2, 2**32))


def _is_source(value: Any) -> bool:
    def are_texts(found: Any) -> bool:
        return isinstance(found, list) and all(map(is_text, found))

    kinds: dict[str, Callable[[Any], bool]] = {"model": is_text, "inputs": are_texts}
    kinds["tokenizer"] = lambda found: found is None or is_text(found)
    kinds["max_length"] = lambda found: found is None or is_whole(found, 1)
    kinds["batch_size"] = lambda found: is_whole(found, 1)
    kinds["classes"] = lambda found: found is None or are_texts(found)
    return value == {} or (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(is_kind(value[name]) for name, is_kind in kinds.items())
    )


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and _CHECKSUM.fullmatch(value) is not None


def _is_change(value: Any) -> bool:
    kinds: dict[str, Callable[[Any], bool]] = {"epoch": is_whole, "step": is_whole, "before": is_text}
    kinds["samples"] = lambda count: count is None or is_whole(count)
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(is_kind(value[name]) for name, is_kind in kinds.items())
    )


def _is_table(key: str, is_kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check of a dictionary: keys match a pattern, with numbers below 2^32, and values are of a kind."""
    pattern = re.compile(key)

    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(
            (match := pattern.fullmatch(name)) is not None
            and all(int(number) < 2**32 for number in match.groups())
            and is_kind(found)
            for name, found in value.items()
        )

    return check


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_samples": (lambda value: is_whole(value, 1), "an integer from 1 to 2^63"),
    "row_shape": (_is_shape, f"at most {_MOST_DIMENSIONS} sizes of at least 1, and {_MOST_VALUES} values"),
    "dtype": (lambda value: isinstance(value, str) and value in DTYPES, f"one of {', '.join(map(repr, DTYPES))}"),
    "fingerprint": (is_text, f"at most {_LONGEST_TEXT} printable characters"),
    "ids": (lambda value: value is None or _is_checksum(value), "null, or a checksum"),
    "labels": (lambda value: value is None or _is_checksum(value), "null, or a checksum"),
    "label_offsets": (lambda value: value is None or _is_checksum(value), "null, or a checksum"),
    "label_changes": (
        lambda value: isinstance(value, list) and all(map(_is_change, value)),
        "a list of epoch, step, number of samples, and fingerprint",
    ),
    "layout": (_is_layout, "nothing, ragged rows, or the largest of a vocabulary of at most 2^32"),
    "source": (_is_source, "nothing, or a model, its inputs, tokenizer, largest length, classes and batch size"),
    "head": (is_text, f"at most {_LONGEST_TEXT} printable characters"),
    "texts": (_is_table("(?s:.*)", is_text), "fingerprints by column"),
    "label_column": (lambda value: value is None or isinstance(value, str), "null, or a column's name"),
    "sealed": (_is_table(_NUMBER, _is_checksum), "checksums by epoch"),
    "parts": (_is_table(rf"(?:offsets|classes|rest) {_NUMBER}", _is_checksum), "checksums by part and epoch"),
    "statistics": (_is_table(rf"(?!epoch )[a-z_]+ {_NUMBER}", _is_checksum), "checksums by name and epoch"),
    "log": (
        lambda value: _is_table(_NUMBER, _is_checksum)(value) and len(value) <= 1,
        "at most one checksum, by the number of entries",
    ),
    "open": (_is_table(f"{_NUMBER} {_NUMBER}", is_whole), "sizes by epoch and process"),
    "note": (lambda value: isinstance(value, dict), "an object"),
    "aside": (lambda value: isinstance(value, bool), "true or false"),
}


def _first_wrong(manifest: dict[str, Any]) -> str | None:
    """The first error in a manifest, as a sentence; None if there is none."""
    unknown = sorted(manifest.keys() - _EXPECTED.keys())
    if unknown:
        return f"{shortened(unknown[0])} is unknown here. Use the lstsd_hf that wrote it."
    for name, (is_right, expected) in _EXPECTED.items():
        if name not in manifest:
            return f"{name} is missing: expected {expected}."
        if not is_right(manifest[name]):
            return f"{name}={shortened(manifest[name])}: expected {expected}."
    parts = _PARTS[manifest["layout"].get("kind")]
    missing = [f"{part} {epoch}" for epoch in manifest["sealed"] for part in parts]
    missing = [key for key in missing if key not in manifest["parts"]]
    return f"parts={shortened(manifest['parts'])}: expected {missing[0]!r} too." if missing else None
