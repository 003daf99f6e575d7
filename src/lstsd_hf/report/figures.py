"""The report's plots, as plotly figures; the page gives them its colours, for light and for dark."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from ..method.dynamics import Calibration

# Told apart by most colour-blind readers, and readable on white and on black.
BLUE, ORANGE, RED, GREEN, GREY = "#3d85c6", "#d98324", "#d1495b", "#2a9d8f", "#8a8f98"
BAD_TO_GOOD = [[0.0, RED], [0.5, "#b59ac9"], [1.0, BLUE]]
LOSSES = {
    "loss": ("all together", GREY),
    "base_loss": ("label", BLUE),
    "long_term_loss": ("long-term teacher", ORANGE),
    "short_term_loss": ("short-term teacher", GREEN),
    "eval_loss": ("evaluation", RED),
}

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


def data_map(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    colour: npt.NDArray[Any],
    titles: tuple[str, str, str],
    scale: Any,
    ends: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """A point for each sample, and a second trace without points: the sample that the reader picked.

    `ends`: the colours that the scale starts and ends at; None: the least and the largest there are.
    """
    bar = {"title": {"text": titles[2], "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 0.9}
    marker = {"color": colour, "colorscale": scale, "cmin": ends[0], "cmax": ends[1], "showscale": True}
    points = go.Scatter(
        x=x,
        y=y,
        mode="markers",
        marker=marker | {"colorbar": bar, "size": 6, "opacity": 0.75},
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
    )
    picked = go.Scatter(
        x=[],
        y=[],
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": ORANGE, "line": {"width": 3}},
        hoverinfo="skip",
        showlegend=False,
    )
    return _figure([points, picked], titles[0], titles[1], hovermode="closest")


def loss_curves(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The parts of the loss over epochs, from the Trainer's log; None where it has none."""
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


def lines_over_epochs(lines: Mapping[str, tuple[Sequence[int], Sequence[float]]], y: str, share: bool) -> Figure:
    """A line for each name, through the epochs and values given; `share`: the values are from 0 to 1."""
    colours = (BLUE, GREEN, ORANGE)
    traces = [
        go.Scatter(x=x, y=values, name=name, mode="lines+markers", line={"color": colour, "width": 2})
        for (name, (x, values)), colour in zip(lines.items(), colours, strict=False)
    ]
    axis = {"tickformat": ".0%"} if share else {"rangemode": "tozero"}
    whole = {"tickformat": "d", "dtick": max(1, max(max(x) for x, _ in lines.values()) // 10)}
    return _figure(traces, "epoch", y, hovermode="x unified", xaxis=whole, yaxis=axis, showlegend=True)


def reliability(bins: Calibration) -> Figure:
    """Accuracy over confidence, where a calibrated model is on the diagonal."""
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


def forgetting(events: npt.NDArray[Any], never_learnt: npt.NDArray[Any]) -> Figure:
    """How many samples were forgotten how often, and how many were never learnt."""
    counts = np.bincount(events[~never_learnt])
    x = ["never<br>learnt", *(f"{number}&times;" for number in range(len(counts)))]
    y = [int(never_learnt.sum()), *counts.tolist()]
    colours = [RED, *[BLUE] * len(counts)]
    bars = go.Bar(x=x, y=y, marker={"color": colours}, hovertemplate="%{y:,} samples<extra></extra>")
    bars.update(text=[f"{count:,}" for count in y], textposition="outside", cliponaxis=False)
    # From 0.5 on, so that a single sample has a bar.
    axis = {"type": "log", "dtick": 1, "range": [np.log10(0.5), np.log10(max(y)) + 0.3]}
    return _figure([bars], "forgotten", "samples", xaxis={"type": "category"}, yaxis=axis)
