"""The page of a run: what looks wrong, a review of it card by card, a map, a table, and how the run learnt.

The review keeps each run's decisions in the browser, and downloads them as `decisions.csv`, which `lstsd clean` reads.
It is a CSV file in UTF-8, with fields quoted where they must be (RFC 4180), a header, and a row for each decided
sample, the most suspicious first:

    sample_id   the sample's id
    decision    keep: the given label is right; relabel: it gets another one; drop: the sample is removed. With several
                labels per sample, flip instead of relabel: a given label is removed, and one not given is added
    label       relabel: the name of the new class; else empty. With several labels: the name of the one in question
    token       only for a tagger: which of the sample's labelled tokens, from 0
    given       the name of the given class; for a regression the given score; with several labels yes or no
    suggested   the name of the class that the history suggests; for a regression empty; with several labels yes or no
    score       the noise score, rounded to four decimals

A spreadsheet would run a name that begins with one of = + - @, a tab or a carriage return as a formula, unless it is a
number. Such a name gets an apostrophe in front. A reader of the file looks for the name as it stands first, and then
for the name without the apostrophe.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..method import dynamics
from . import page_columns, summary
from .assembly import write_html
from .headline import headline
from .measures import Measures
from .multi_label import LOOKS, LabelRun, looks
from .page_columns import PageColumn
from .run import Run
from .texts import Texts
from .token_texts import TokenTexts

Array = npt.NDArray[Any]

TABLE_ROWS = 100_000
MAP_POINTS = 5_000
SUSPECTS = 500  # so many of the map's points are the most suspicious samples, which a random draw would miss
REVIEWED = 1_000  # so many of the most suspicious samples have their text in full, up to REVIEW_LENGTH
REVIEW_LENGTH = 5_000
TEXT_LENGTH = 300
_ALL_TEXTS = 20_000_000


def write_page(
    path: Path,
    run: Run,
    measures: Measures,
    texts: Texts | TokenTexts | None,
    whole: tuple[Run, Measures] | None = None,
) -> Path:
    """Writes the page and returns its path.

    Args:
        path: The file to write.
        run: The run; a tagger's as `WorstTokens`, a multi-label head's as `LabelRun`.
        measures: The measures of its samples.
        texts: The texts that the page shows; None: it shows ids.
        whole: For a tagger all tokens, and for a multi-label head all labels: the page's numbers and curves are
            computed from them. None: from `run` and `measures`.
    """
    every, all_measures = whole or (run, measures)
    noise, further = (
        (page_columns.NOISE_OF_SCORES, page_columns.MEASURES_OF_SCORES)
        if run.is_regression
        else (page_columns.NOISE, page_columns.MEASURES_OF_CLASSES)
    )
    # Labels of a class that the model does not know may have higher noise scores than those that look wrong.
    listed, drawn = choose(dynamics.ranks(measures.samples["noise_score"] + measures.samples["looks_wrong"]))
    words, cut = (None, "") if texts is None else texts_of(texts, run.shown_ids[listed])
    plots, missing = summary.curves(every, all_measures)
    memory = summary.memory(run.log)
    if memory is not None:
        plots["memory"] = memory.figure
    data_map, colourings = summary.data_map(run, measures, listed[drawn])
    rows = _rows(run, measures, (noise, *further), listed)
    data = {
        "key": _key(every),
        "epochs": run.epochs,
        "classes": run.classes,
        "columns": [column._asdict() for column in (noise, *further)],
        "rows": rows | {"text": words} | _tokens(run, measures, texts, listed) | _labels(run, rows, listed),
        "drawn": drawn.tolist(),
        "figures": {"map": data_map, **plots},
        "colourings": colourings,
        "pair": ["about", "look"] if isinstance(run, LabelRun) else ["label", "suggested"],
        "names": run.names if isinstance(run, LabelRun) else None,
        "looks": LOOKS,
    }
    left_out = _left_out(run, measures, listed, drawn)
    if words is None:
        left_out.append("The page shows ids, because it was made without the texts: name the data with --dataset.")
    elif cut:
        left_out.append(cut)
    if isinstance(texts, TokenTexts) and not texts.has_words_of_tokens:
        left_out.append("Some sentences have more labels than words, so tokens are numbered, and not marked in texts.")
    return write_html(
        path,
        "report",
        data,
        run=run,
        title=f"{run.name} · training report",
        headline=headline(run, measures),
        tiles=summary.tiles(every, all_measures),
        notes=[*summary.notes(run, measures), *missing, *left_out],
        columns=(noise, *further),
        noise=noise,
        further=further,
        colourings=colourings,
        matrix=_matrix(run, measures.samples["suggested_label"], listed) if run.classes else None,
        looks=LOOKS,
        memory=memory,
        plots=[(name, *summary.PLOTS[name]) for name in plots if name in summary.PLOTS],
        has_texts=words is not None,
        is_tagger=run.unit == "token",
        is_multi_label=run.unit == "label",
    )


def _key(run: Run) -> str:
    """The browser's key for the decisions, which depends on the run's name, samples, classes and given labels."""
    digest = hashlib.sha256(repr((run.name, run.store.fingerprint, run.classes)).encode())
    digest.update(run.ids.tobytes() + run.labels.tobytes())
    return f"lstsd-decisions-{digest.hexdigest()[:32]}"


def choose(rank: Array) -> tuple[Array, Array]:
    """Chooses the samples that the page shows, the same at each call.

    Args:
        rank: (N,) their ranks by suspicion, 1 for the most suspicious; 0: never seen.

    Returns:
        The rows of the samples in the table, the most suspicious first; and the positions, among these, of the samples
        on the map.
    """
    order = np.argsort(rank, kind="stable")[int((rank == 0).sum()) :]
    every = np.arange(len(order))
    drawn = every
    if len(order) > MAP_POINTS:
        some = np.random.default_rng(0).choice(every[SUSPECTS:], MAP_POINTS - SUSPECTS, replace=False)
        drawn = np.concatenate([every[:SUSPECTS], np.sort(some)])
    # The map draws from all samples, so some of its points may rank too low for the table, which lists them as well.
    listed = np.union1d(every[: TABLE_ROWS - len(drawn)], drawn) if len(order) > TABLE_ROWS else every
    return order[listed], np.searchsorted(listed, drawn)


def texts_of(texts: Texts | TokenTexts, ids: Array) -> tuple[list[str | None], str]:
    """The texts of (n,) samples, the most suspicious first; and a sentence about texts that are cut, or ""."""
    rest = max(0, len(ids) - REVIEWED)
    length = min(TEXT_LENGTH, _ALL_TEXTS // max(1, len(ids)))
    first, cut_first = texts.of(ids[:REVIEWED], REVIEW_LENGTH)
    others, cut_others = texts.of(ids[REVIEWED:], length) if rest else ([], 0)
    told = []
    if cut_first:
        told.append(f"Texts are cut at {REVIEW_LENGTH:,} characters ({cut_first:,} of them)")
    if cut_others:
        told.append(f"texts below rank {REVIEWED:,} are cut at {length:,} characters ({cut_others:,} of them)")
    said = "; ".join(told)
    return first + others, f"{said[0].upper()}{said[1:]}. A search does not find what is cut off." if said else ""


def _rows(run: Run, measures: Measures, shown: tuple[PageColumn, ...], listed: Array) -> dict[str, Any]:
    """The page's rows, as columns; `predicted` is the class or score in each epoch.

    For classes, `given` and `suggestion` are the probabilities of the given and the suggested label in each epoch, in
    percent.
    """
    samples = measures.samples
    ids, labels = run.ids[listed], run.labels[listed]
    by_epoch: dict[str, list[list[Any]]] = {}

    def add(name: str, values: list[list[Any]]) -> None:
        kept = by_epoch.setdefault(name, [[] for _ in run.epochs])
        for cells, further in zip(kept, values, strict=True):
            cells += further

    for chunk in run.chunks(len(ids)):
        logits = run.logits(ids[chunk])
        absent = np.asarray(np.isnan(logits).any(axis=2))
        found = page_columns.scores(logits[:, :, 0]) if run.is_regression else logits.argmax(axis=2)
        add("predicted", [page_columns.plain(*epoch) for epoch in zip(found, absent, strict=True)])
        if not run.is_regression:
            probabilities = dynamics.softmax(logits)
            for name, classes in (("given", labels), ("suggestion", samples["suggested_label"][listed])):
                shares = dynamics.given_probability(probabilities, classes[chunk])
                add(name, [page_columns.percent(epoch) for epoch in shares])
    rows: dict[str, Any] = {column.name: column.cells(samples[column.name][listed]) for column in shown}
    rows |= {
        "id": page_columns.identifiers(run.shown_ids[listed]),
        "flagged": samples["looks_wrong"][listed].astype(int).tolist(),
    }
    if run.is_regression:
        return rows | {"label": page_columns.scores(labels).tolist(), "suggested": [], **by_epoch}
    return rows | {"label": labels.tolist(), "suggested": samples["suggested_label"][listed].tolist(), **by_epoch}


def _tokens(run: Run, measures: Measures, texts: Any, listed: Array) -> dict[str, Any]:
    """For a tagger: which of its sample's tokens a row is about, from 0; the word, and its place in the text."""
    if run.unit != "token":
        return {}
    places = measures.samples["token"][listed].tolist()
    rows: dict[str, Any] = {"token": places}
    if isinstance(texts, TokenTexts):
        marks = [texts.mark(sample, place) for sample, place in zip(run.ids[listed].tolist(), places, strict=True)]
        rows["word"] = [None if mark is None else mark.word for mark in marks]
        rows["mark"] = [None if mark is None else [mark.begin, mark.end] for mark in marks]
    return rows


def _labels(run: Run, rows: dict[str, Any], listed: Array) -> dict[str, Any]:
    """For several labels: which one a row is about, its index in `LOOKS`, and the labels given to its sample."""
    if not isinstance(run, LabelRun):
        return {}
    look = looks(np.array(rows["label"], int), np.array(rows["suggested"], int))
    vectors = run.run.labels[run.ids[listed] // len(run.names)]
    own = [np.flatnonzero(vector).tolist() for vector in vectors]
    return {"about": run.about[listed].tolist(), "look": look.tolist(), "own": own}


def _matrix(run: Run, suggested: Array, listed: Array) -> summary.Matrix:
    given, suggested = run.labels[listed], suggested[listed]
    if isinstance(run, LabelRun):
        return summary.matrix_of_labels(run.about[listed], looks(given, suggested), len(run.names))
    return summary.matrix(given, suggested, len(run.classes))


def _left_out(run: Run, measures: Measures, listed: Array, drawn: Array) -> list[str]:
    """Sentences about what the page leaves out because there is too much of it."""
    count, told = int(measures.samples["noise_rank"].max()), []
    rows = "labels" if run.unit == "label" else "samples"
    if len(drawn) < count:
        told.append(
            f"The map shows {len(drawn):,} {rows}: the {SUSPECTS:,} most suspicious, and others drawn at random."
        )
    if len(listed) < count:
        told.append(
            f"The table and the review have {len(listed):,} {rows}: the most suspicious, and those on the map. "
            "samples.parquet has all."
        )
    return told
