"""The log of the run that fills a store: `log-<entries>.json`, a list of objects, each with numbers by name.

A number that is not finite is stored as null. A long log is thinned: of each kind of entry, which is the set of its
names, evenly spaced entries are kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import StoreCorruptionError
from .files import checksum_of, discard, protect, read_regular, replacing
from .folder import StoreFolder
from .manifest import is_text, read_manifest, shortened, write_manifest

_MOST_ENTRIES = 10_000
_LARGEST_LOG = 64 << 20  # bytes
_LARGEST_NUMBER = 1e300  # for integers too, which JSON does not limit

LogEntry = dict[str, float]


class TrainingLog(StoreFolder):
    """The part of a store that keeps the run's log."""

    def write_log(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Publishes a run's log, replacing an earlier one. Does nothing if the number of entries is the same.

        Args:
            entries: As in the Trainer's state, oldest first. Values that are not numbers are left out.

        Raises:
            StoreError: the log could not be written.
        """
        manifest, count = read_manifest(self.path), len(entries)
        earlier = [int(number) for number in manifest["log"]]
        if earlier == [count]:
            return
        kept = [_numbers(entry) for entry in entries]
        text, most = _as_json(_thinned(kept, _MOST_ENTRIES)), _MOST_ENTRIES
        while len(text) > _LARGEST_LOG:
            most //= 2
            text = _as_json(_thinned(kept, most))
        path = self.log_path(count)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="ascii")
            protect(temporary)
            manifest["log"] = {str(count): checksum_of(temporary)}
        write_manifest(self.path, manifest)
        for number in earlier:
            discard(self.log_path(number))

    def read_log(self) -> list[LogEntry] | None:
        """The log, oldest entry first, with NaN for numbers that are not finite. None if the store has no log.

        Raises:
            StoreCorruptionError: the file is missing or damaged.
        """
        counts = list(read_manifest(self.path)["log"])
        if not counts:
            return None
        path = self.log_path(int(counts[0]))
        try:
            entries = json.loads(read_regular(path, _LARGEST_LOG))
        except (OSError, ValueError, RecursionError) as error:
            raise StoreCorruptionError(f"{path} is missing or damaged: {shortened(str(error))}.") from error
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            raise StoreCorruptionError(f"{path} is damaged: expected a list of objects with numbers by name.")
        return [{name: math.nan if value is None else value for name, value in entry.items()} for entry in entries]

    def _verify_log(self) -> None:
        log = read_manifest(self.path)["log"]
        with self._unless(lambda: read_manifest(self.path)["log"] != log):
            self.read_log()


def _numbers(entry: Mapping[str, Any]) -> LogEntry:
    # `float` converts numpy's float64, which is a subclass of float.
    plain = {name: float(value) if isinstance(value, float) else value for name, value in entry.items()}
    return {name: value for name, value in plain.items() if is_number(name, value)}


def is_number(name: Any, value: Any) -> bool:
    """Whether a value of a log is a number, and its name printable."""
    is_endless = type(value) is float and not math.isfinite(value)
    return is_text(name) and (is_endless or (type(value) in (int, float) and abs(value) <= _LARGEST_NUMBER))


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        is_number(name, math.nan if value is None else value) for name, value in entry.items()
    )


def _as_json(entries: list[LogEntry]) -> str:
    finite = [{name: value if math.isfinite(value) else None for name, value in entry.items()} for entry in entries]
    return json.dumps(finite, allow_nan=False) + "\n"


def _thinned(entries: list[LogEntry], most: int) -> list[LogEntry]:
    """About `most` of the entries, evenly spaced, with an equal share for each kind (set of names)."""
    if len(entries) <= most:
        return entries
    kinds: dict[frozenset[str], list[int]] = {}
    for position, entry in enumerate(entries):
        kinds.setdefault(frozenset(entry), []).append(position)
    share = max(1, most // len(kinds))
    kept = [at for positions in kinds.values() for at in positions[:: math.ceil(len(positions) / share)]]
    return [entries[at] for at in sorted(kept)]
