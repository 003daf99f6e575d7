"""Samples with many rows for the speed benchmark: taggers, spans, language models, and stores of their rows."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from lstsd_hf import LogitsStore

from .measure import Line, alternate, compare

Array = npt.NDArray[Any]

IGNORED = -100
LABEL_NAMES = {"spans": ("start_positions", "end_positions")}
_SAMPLES_AT_ONCE = 256
_BATCH = 32


class Kind(NamedTuple):
    """The kind of samples in a store: rows of all `classes`, or of the top `k` of a vocabulary of `classes` tokens."""

    name: str
    classes: int
    k: int = 0

    def columns(self, rng: np.random.Generator, tokens: Array) -> dict[str, Any]:
        """The label columns for (N, L) tokens."""
        if self.name == "spans":
            start = rng.integers(0, tokens.shape[1] - 1, len(tokens))
            return {"start_positions": start.tolist(), "end_positions": (start + 1).tolist()}
        if self.name == "vocabulary":
            return {"labels": tokens.tolist()}
        labels = rng.integers(0, self.classes, tokens.shape)
        labels[:, 0] = IGNORED
        return {"labels": labels.tolist()}

    def model(self, sizes: dict[str, int]) -> Any:
        if self.name == "vocabulary":
            layers, width = sizes["num_hidden_layers"], sizes["hidden_size"]
            heads = sizes["num_attention_heads"]
            return GPT2LMHeadModel(GPT2Config(vocab_size=self.classes, n_embd=width, n_layer=layers, n_head=heads))
        if self.name == "spans":
            return BertForQuestionAnswering(BertConfig(**sizes))
        return BertForTokenClassification(BertConfig(num_labels=self.classes, **sizes))

    def rows(self, tokens: int) -> int:
        """The number of rows of a sample with this many tokens."""
        return tokens if self.name == "spans" else tokens - 1

    def new_store(self, path: Path, samples: int, fingerprint: str) -> LogitsStore:
        if self.name == "vocabulary":
            vocabulary = self.classes
            return LogitsStore.create(path, samples, (self.k,), "float16", fingerprint, vocabulary=vocabulary)
        return LogitsStore.create(path, samples, (self.classes,), "float16", fingerprint, ragged=True)

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, Array]:
        """Random parts for this many rows."""
        if self.name != "vocabulary":
            return {"logits": rng.standard_normal((rows, self.classes), np.float32)}
        shares = -np.sort(-rng.random((rows, self.k), np.float32)) / self.k
        first = rng.integers(0, self.classes, (rows, 1))
        classes = (first + np.arange(self.k)) % self.classes  # no class twice in a row
        return {"logits": np.log(shares), "classes": classes, "rest": np.log1p(-np.minimum(shares.sum(1), 0.999))}

    def record_past(self, made: LogitsStore, epochs: list[int], samples: int, tokens: int) -> None:
        """Records and seals epochs in which every sample has this many tokens."""
        rng = np.random.default_rng(0)
        for epoch in epochs:
            for start in range(0, samples, _SAMPLES_AT_ONCE):
                ids = np.arange(start, min(start + _SAMPLES_AT_ONCE, samples))
                counts = np.full(len(ids), self.rows(tokens))
                made.record(epoch, ids, counts=counts, step=start, **self.draw(rng, int(counts.sum())))
            made.seal(epoch)


# ---- the store alone

_ROWS = 10  # in a sample, on average


def seal_and_read(folder: Path, sizes: tuple[int, ...], repeats: int) -> Iterator[Line]:
    """Nanoseconds that sealing and reading take for each byte of a sealed epoch, from few samples to many."""
    for kind, what in ((Kind("tokens", 9), "tokens, 9 classes"), (Kind("vocabulary", 32_000, 8), "8 of 32,000")):
        smallest: dict[str, list[float]] = {}
        for samples in sizes:
            found = _of_size(folder / "ragged", kind, samples, repeats)
            for name, values in found.items():
                first = smallest.setdefault(name, values)
                label = f"{name} {what}, {samples:.0e} samples: {1 / float(np.median(values)):.2f} GB/s"
                reference = f"{sizes[0]:.0e} samples"
                pairs = min(len(first), len(values))
                goal = 1.5 if samples > sizes[0] else None
                yield compare("rows", label, "ns/B", reference, first[:pairs], values[:pairs], at_most=goal)


def _read_all(made: LogitsStore, epoch: int, batches: list[Array]) -> None:
    for ids in batches:
        made.read_rows(epoch, ids)


def _of_size(path: Path, kind: Kind, samples: int, repeats: int) -> dict[str, list[float]]:
    """Nanoseconds for each byte of the sealed files: to seal it, and to read it in batches of random samples."""
    shutil.rmtree(path, ignore_errors=True)
    made = kind.new_store(path, samples, "benchmark")
    rng = np.random.default_rng(0)
    counts = rng.integers(_ROWS // 2, 3 * _ROWS // 2 + 1, samples)
    order = rng.permutation(samples)
    drawn = kind.draw(rng, 2 * _ROWS * _SAMPLES_AT_ONCE)
    found: dict[str, list[float]] = {"seal": [], "read": []}
    for epoch in range(repeats):
        for start in range(0, samples, _SAMPLES_AT_ONCE):
            ids = order[start : start + _SAMPLES_AT_ONCE]
            rows = int(counts[ids].sum())
            parts = {name: part[:rows] for name, part in drawn.items()}
            made.record(epoch, ids, counts=counts[ids], step=start, labels=np.zeros(rows, np.int32), **parts)
        made.close()
        [seconds] = alternate({"": lambda epoch=epoch: made.seal(epoch)}, 1, warm_up=0)[""]
        size = sum(file.stat().st_size for file in made.part_paths(epoch).values())
        found["seal"].append(1e9 * seconds / size)
        batches = [rng.permutation(samples)[:_BATCH] for _ in range(20)]
        row = made.epoch_rows(epoch).nbytes / len(made.epoch_rows(epoch))
        read = alternate({"": functools.partial(_read_all, made, epoch, batches)}, 5, warm_up=2)[""]
        found["read"] += [1e9 * value / (row * sum(int(counts[ids].sum()) for ids in batches)) for value in read]
    shutil.rmtree(path)
    return found
