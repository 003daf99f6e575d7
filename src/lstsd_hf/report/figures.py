"""The pages' plots, as plotly figures; a page gives them its colours, for light and for dark."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from ..method.dynamics import Calibration

Array = npt.NDArray[Any]

# Told apart by most colour-blind readers, and readable on white and on black.
BLUE, ORANGE, RED, GREEN, GREY = "#3d85c6", "#d98324", "#d1495b", "#2a9d8f", "#8a8f98"
BAD_TO_GOOD = [[0.0, RED], [0.5, "#b59ac9"], [1.0, BLUE]]
OF_CLASSES = (BLUE, ORANGE, GREEN, RED, "#8e6bbf", "#9c7a4d", "#d276b4", "#6f9a2f", "#3aa7c4")
LOSSES = {
    "loss": ("all together", GREY),
    "base_loss": ("label", BLUE),
    "long_term_loss": ("long-term teacher", ORANGE),
    "short_term_loss": ("short-term teacher", GREEN),
    "outside_loss": ("outside teacher", "#8e6bbf"),
    "honest_past_loss": ("label, and past without memory", "#4aa3a2"),
    "eval_loss": ("evaluation", RED),
}
NORMAL_95 = 1.96  # standard errors on either side of an estimate hold 95 % of a normal distribution

Figure = dict[str, Any]


def _figure(traces: Sequence[Any], x: str, y: str, **layout: Any) -> Figure:
    settings = {
        "template": "none",
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hoverlabel": {"align": "left"},
    }
    for axis in ("xaxis", "yaxis"):
        settings[axis] = settings[axis] | layout.pop(axis, {})
    return json.loads(go.Figure(list(traces), go.Layout(settings | layout)).to_json())


class Colouring(TypedDict):
    """Colours for a map's points.

    Attributes:
        title: What the colours stand for.
        marker: The `marker` of plotly's trace.
        legend: Pairs of a text and a colour, which the page shows beside the plot; for a scale, its two ends.
        scale: The colours of a scale from the first to the last; empty for classes.
    """

    title: str
    marker: dict[str, Any]
    legend: list[tuple[str, str]]
    scale: list[str]


def by_value(title: str, values: Array, scale: Any, ends: tuple[float, float] | None = None) -> Colouring:
    """Colours from a scale, by (n,) values; `ends`: the values at its two ends, by default the range of `values`."""
    low, high = ends or ((float(values.min()), float(values.max())) if len(values) else (0.0, 1.0))
    marker = {"color": values.tolist(), "colorscale": scale}
    if ends is not None:
        marker |= {"cmin": low, "cmax": high}
    colours = [colour for _, colour in go.scatter.Marker(colorscale=scale).colorscale]
    texts = [f"{end:.0%}" if ends == (0, 1) else f"{end:.4g}" for end in (low, high)]
    return Colouring(
        title=title, marker=marker, legend=list(zip(texts, (colours[0], colours[-1]), strict=True)), scale=colours
    )


def by_class(title: str, classes: Array, names: Sequence[str], colours: Sequence[str] = OF_CLASSES) -> Colouring:
    """A colour for each of the most frequent of (n,) classes; grey for the others, and for -1, which is no class."""
    counts = np.bincount(classes[classes >= 0], minlength=len(names))
    frequent = sorted(np.argsort(-counts, kind="stable")[: len(colours)].tolist())
    colour = np.full(len(names) + 1, GREY, object)
    colour[frequent] = colours[: len(frequent)]
    legend = [(names[label], colour[label]) for label in frequent if counts[label]]
    if not np.isin(classes, frequent).all():
        legend.append(("others", GREY))
    return Colouring(title=title, marker={"color": colour[classes].tolist()}, legend=legend, scale=[])


def data_map(
    x: Array,
    y: Array,
    titles: tuple[str, str],
    colouring: Colouring,
    regions: Sequence[tuple[str, float, float]],
    are_shares: bool = True,
) -> Figure:
    """A point for each sample.

    `regions`: the names of parts of the map, with their x and y in it, from 0 (left, bottom) to 1. `are_shares`:
    whether y is from 0 to 1; the axis then leaves room for these names above and below.
    """
    points = go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker=colouring["marker"] | {"size": 6, "opacity": 0.75},
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    names = [
        {
            "text": f"<b>{name}</b>",
            "x": right,
            "y": up,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "left" if right < 0.5 else "right",
            "yanchor": "bottom" if up < 0.4 else "top" if up > 0.6 else "middle",
            "showarrow": False,
        }
        for name, right, up in regions
    ]
    axis = {"range": [-0.1, 1.1], "tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1]} if are_shares else {}
    return _figure([points], *titles, hovermode="closest", annotations=names, yaxis=axis)


def loss_curves(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The parts of the loss over epochs, from the Trainer's log; None if it has none."""
    traces = []
    for name, (title, colour) in LOSSES.items():
        entries = [(entry["epoch"], entry[name]) for entry in log if name in entry and "epoch" in entry]
        if entries:
            x, y = zip(*entries, strict=True)
            mode = "lines+markers" if len(entries) < 30 else "lines"
            traces.append(go.Scatter(x=x, y=y, name=title, mode=mode, line={"color": colour, "width": 2}))
    return (
        _figure(traces, "epochs trained", "loss", hovermode="x unified", yaxis={"rangemode": "tozero"})
        if traces
        else None
    )


def lines_over_epochs(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    y: str,
    share: bool,
    colours: Sequence[str] = (BLUE, GREEN, ORANGE),
) -> Figure:
    """A line for each name, through its epochs and values; `share`: whether the values are from 0 to 1."""
    traces = [
        go.Scatter(x=x, y=values, name=name, mode="lines+markers", line={"color": colour, "width": 2})
        for (name, (x, values)), colour in zip(lines.items(), colours, strict=False)
    ]
    axis = {"tickformat": ".0%"} if share else {"rangemode": "tozero"}
    return _figure(
        traces, "epoch", y, hovermode="x unified", xaxis=_whole(lines.values()), yaxis=axis, showlegend=True
    )


def _whole(lines: Any) -> dict[str, Any]:
    """An axis of epochs, with ticks at whole epochs only."""
    return {"tickformat": "d", "dtick": max(1, max(max(x) for x, _ in lines) // 10)}


def memory(
    epochs: Sequence[int],
    honest: Array,
    own: Array,
    honest_error: Array,
    names: tuple[str, str],
    y: str,
    share: bool,
) -> Figure:
    """How well the model does on new samples, and on its own, some of which it knows by heart; (E,) each.

    `honest_error`: the standard error of `honest`, shown as a band of 95 % if it is known for all epochs; `names`: the
    names of the two lines; `share`: whether the values are from 0 to 1.
    """
    by_heart = go.Scatter(x=epochs, y=own, name=names[1], mode="lines+markers", line={"color": ORANGE})
    learnt = go.Scatter(
        x=epochs,
        y=honest,
        name=names[0],
        mode="lines+markers",
        line={"color": BLUE, "width": 3},
        fill="tonexty",
        fillcolor="rgba(217, 131, 36, 0.22)",
    )
    traces = [by_heart, learnt]
    if not np.isnan(honest_error).any():
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        band = NORMAL_95 * honest_error
        traces += [
            go.Scatter(x=epochs, y=honest - band, showlegend=False, **edge),
            go.Scatter(
                x=epochs,
                y=honest + band,
                name=f"{names[0]}, 95 % interval",
                fill="tonexty",
                fillcolor="rgba(61, 133, 198, 0.3)",
                **edge,
            ),
        ]
    return _figure(
        traces,
        "epoch",
        y,
        hovermode="x unified",
        xaxis=_whole([(epochs, own)]),
        yaxis={"tickformat": ".0%"} if share else {"rangemode": "tozero"},
        showlegend=True,
    )


def reliability(bins: Calibration) -> Figure:
    """Accuracy by confidence; a calibrated model is on the diagonal."""
    filled = bins.samples > 0
    edges = np.linspace(0, 1, len(bins.samples) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    bars = go.Bar(
        x=centres[filled],
        y=bins.accuracy[filled],
        width=0.9 / len(bins.samples),
        marker={"color": BLUE},
        name="samples",
        customdata=np.column_stack([bins.confidence[filled], bins.samples[filled]]),
        hovertemplate="mean confidence %{customdata[0]:.1%}<br>predicted as labelled %{y:.1%}<br>"
        "%{customdata[1]:,} samples<extra></extra>",
        showlegend=False,
    )
    ideal = go.Scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"dash": "dot", "color": GREY}, hoverinfo="skip"
    )
    axis = {"range": [0, 1.02], "tickformat": ".0%"}
    return _figure([bars, ideal], "confidence", "predicted as labelled", xaxis=axis, yaxis=axis, showlegend=True)


def forgetting(events: Array, never_learnt: Array) -> Figure:
    """The number of samples by how often they were forgotten, and of those that were never learnt."""
    counts = np.bincount(events[~never_learnt])
    x = ["never<br>learnt", *(f"{number}&times;" for number in range(len(counts)))]
    y = [int(never_learnt.sum()), *counts.tolist()]
    colours = [RED, *[BLUE] * len(counts)]
    bars = go.Bar(x=x, y=y, marker={"color": colours}, hovertemplate="%{y:,} samples<extra></extra>")
    bars.update(text=[f"{count:,}" for count in y], textposition="outside", cliponaxis=False)
    # The logarithmic axis begins at 0.5, so that a single sample has a bar.
    axis = {"type": "log", "dtick": 1, "range": [np.log10(0.5), np.log10(max(y)) + 0.3]}
    return _figure([bars], "forgotten", "samples", xaxis={"type": "category"}, yaxis=axis)
