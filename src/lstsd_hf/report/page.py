"""The page: one HTML file that holds the data, the libraries and the styles, and asks for nothing from anywhere.

The data and the libraries are gzip in base64, which the browser unpacks: a third of the size, and nothing in them can
end a `<script>`. Texts are data; the page's own script shows them as text (`textContent`), escapes them for plotly,
whose labels know some HTML, and lets DataTables escape them. Were one of them read as HTML all the same, the page's
policy would run no script but its own, which it names by hash, and load nothing.
"""

import base64
import gzip
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt
from plotly.offline import get_plotlyjs

from ..method import dynamics
from . import summary
from .measures import Measures
from .run import Run
from .texts import Texts

Array = npt.NDArray[Any]

TABLE_ROWS = 100_000
MAP_POINTS = 5_000
SUSPECTS = 500  # of the map's points: the most suspicious samples, which a draw would miss
TEXT_LENGTH = 300
_ALL_TEXTS = 20_000_000


class Column(NamedTuple):
    """A measure as the page shows it."""

    name: str
    title: str
    digits: int
    meaning: str
    in_scores: bool = False  # in the unit of the scores, which may be of any size: small ones in significant digits


CLASS_COLUMNS = (
    Column(
        "noise_score", "noise", 3, "How likely the label is wrong: above 0.5, another class was the more probable."
    ),
    Column("confidence", "confidence", 3, "The mean probability of the given label over epochs."),
    Column("variability", "variability", 3, "The standard deviation of that probability over epochs."),
    Column("correctness", "correctness", 2, "The share of epochs that predicted the given label."),
    Column("forgetting_events", "forgotten", 0, "How often a right prediction was followed by a wrong one."),
    Column("first_learnt", "learnt", 0, "The first epoch, from 0, that predicted the given label; empty: none did."),
    Column("area_under_margin", "margin", 2, "The area under the margin: the label's logit less the largest other."),
)
SCORE_COLUMNS = (
    Column("noise_score", "noise", 3, "How likely the score is wrong: 0.5 is as far off as the scores vary."),
    Column("mean_absolute_error", "error", 3, "The mean absolute error over epochs.", in_scores=True),
    Column("variability", "variability", 3, "The standard deviation of the prediction over epochs.", in_scores=True),
)


def write_page(path: Path, run: Run, measures: Measures, texts: Texts | None) -> Path:
    """Writes the page and returns its path."""
    columns = SCORE_COLUMNS if run.is_regression else CLASS_COLUMNS
    listed, drawn = _choose(measures.samples["noise_rank"])
    length = min(TEXT_LENGTH, _ALL_TEXTS // max(1, len(listed)))
    words, cut = (None, 0) if texts is None else texts.of(run.ids[listed], length)
    plots, missing = summary.curves(run, measures)
    data = {
        "epochs": run.epochs,
        "classes": run.classes,
        "columns": [column._asdict() for column in columns],
        "rows": _rows(run, measures, columns, listed) | {"text": words},
        "drawn": drawn.tolist(),
        "figures": {"map": summary.data_map(run, measures, listed[drawn]), **plots},
    }
    folder = files(__package__)
    # Autoescape: the names of a folder and of its columns are the user's.
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (folder / "page.html").read_text(encoding="utf-8")
    )
    bundle, script = files("itables") / "html", (folder / "page.js").read_text(encoding="utf-8")
    page = template.render(
        run=run,
        columns=columns,
        tiles=summary.tiles(run, measures),
        notes=[*summary.notes(run, measures), *missing, *_left_out(measures, listed, drawn, words, length, cut)],
        plots=[(name, *summary.PLOTS[name]) for name in plots],
        has_texts=words is not None,
        data=_pack(json.dumps(data, allow_nan=False)),
        plotly=_pack(get_plotlyjs()),
        datatables=_pack((bundle / "dt_bundle.js").read_text(encoding="utf-8")),
        styles=[(bundle / "dt_bundle.css").read_text(encoding="utf-8"), (folder / "page.css").read_text("utf-8")],
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")


def _choose(rank: Array) -> tuple[Array, Array]:
    """Which samples the page has.

    Args:
        rank: (N,) their ranks by suspicion, from 1; 0: never seen.

    Returns:
        The rows of those that the table lists, the most suspicious first; and the positions, among these, of those
        that the map shows. The same at each call.
    """
    order = np.argsort(rank, kind="stable")[int((rank == 0).sum()) :]
    every = np.arange(len(order))
    drawn = every
    if len(order) > MAP_POINTS:
        some = np.random.default_rng(0).choice(every[SUSPECTS:], MAP_POINTS - SUSPECTS, replace=False)
        drawn = np.concatenate([every[:SUSPECTS], np.sort(some)])
    # The map is of all samples, so it may show some that would be too far down for the table.
    listed = np.union1d(every[: TABLE_ROWS - len(drawn)], drawn) if len(order) > TABLE_ROWS else every
    return order[listed], np.searchsorted(listed, drawn)


def _rows(run: Run, measures: Measures, columns: tuple[Column, ...], listed: Array) -> dict[str, Any]:
    """The page's rows, in columns; by epoch: `predicted`, the class or score, and `given`, the label's percent."""
    samples = measures.samples
    ids = run.ids[listed]
    predicted: list[list[Any]] = [[] for _ in run.epochs]
    given: list[list[Any]] = [[] for _ in run.epochs]
    for chunk in run.chunks(len(ids)):
        logits = run.logits(ids[chunk])
        absent = np.asarray(np.isnan(logits).any(axis=2))
        if run.is_regression:
            found = _scores(logits[:, :, 0])
        else:
            found = logits.argmax(axis=2)
            percent = dynamics.given_probability(dynamics.softmax(logits), run.labels[listed][chunk]) * 100
            for kept, values, gaps in zip(given, percent, absent, strict=True):
                kept += _plain(np.round(np.where(gaps, 0, values)).astype(int), gaps)
        for kept, values, gaps in zip(predicted, found, absent, strict=True):
            kept += _plain(values, gaps)
    rows = {column.name: _measure(samples[column.name][listed], column) for column in columns}
    labels = run.labels[listed]
    return rows | {
        # As text where a browser's numbers are not exact.
        "id": ids.tolist() if ids.max(initial=0) < 2**53 else ids.astype(str).tolist(),
        "label": (_scores(labels) if run.is_regression else labels).tolist(),
        "predicted": predicted,
        "given": None if run.is_regression else given,
    }


def _measure(values: Array, column: Column) -> list[Any]:
    if values.dtype.kind != "f":
        return _plain(values, values < 0)
    rounded = _scores(values) if column.in_scores else np.round(values.astype(np.float64), column.digits + 1)
    return _plain(rounded, np.isnan(values))


def _scores(values: Array) -> Array:
    """Rounded to 3 decimals, or to 4 significant digits where these are more."""
    values = values.astype(np.float64)
    size = np.floor(np.log10(np.maximum(np.abs(values), 1e-19)))
    factor = 10.0 ** np.maximum(3, 3 - size)  # up to 1e22, which a float still holds exactly
    return np.round(values * factor) / factor


def _plain(values: Array, absent: Array) -> list[Any]:
    """A list for JSON, which has no NaN."""
    plain = values.astype(object)
    plain[absent] = None
    return plain.tolist()


def _left_out(
    measures: Measures, listed: Array, drawn: Array, words: list[str | None] | None, length: int, cut: int
) -> list[str]:
    """What the page does not show, because it is too much, or was not given."""
    count, told = int(measures.samples["noise_rank"].max()), []
    if len(drawn) < count:
        told.append(
            f"The map shows {len(drawn):,} samples: the {SUSPECTS:,} most suspicious, and others drawn at random."
        )
    if len(listed) < count:
        told.append(f"The table lists {len(listed):,} samples, the most suspicious; samples.parquet has all.")
    if words is None:
        told.append("The page shows ids, because the report was made without texts: name them with --dataset.")
    elif cut:
        told.append(f"Texts are cut at {length} characters, {cut:,} of them: no search here finds what comes after.")
    return told
