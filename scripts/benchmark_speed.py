"""Measures what LSTSD costs compared with the plain Trainer, and what its store costs compared with a memory copy.

    pip install -e '.[benchmark]'
    python scripts/benchmark_speed.py --quick                            # every line, in a few minutes
    python scripts/benchmark_speed.py --output benchmarks/speed-cpu.json
    python scripts/benchmark_speed.py --only store growth --folder /another/disk

Prints a table, writes it as JSON, and draws a plot beside the JSON file. Needs Linux; downloads nothing. If there is a
GPU, the trainings run on it. The machine should do nothing else: the two sides of a comparison take turns in one
process, but a busy machine still makes the intervals wide.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from speed.measure import STEADY, Line, processor
from speed.sections import SECTIONS, Scale
from speed.workload import SEED, hush

mpl.use("Agg")
import matplotlib.pyplot as plt

PACKAGES = ("lstsd-hf", "torch", "transformers", "accelerate", "datasets", "numpy")
COLORS = {True: "tab:green", False: "tab:red", None: "tab:gray"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure every line, with few repeats")
    parser.add_argument("--brief", action="store_true", help="time steps only, of few settings: two minutes on a GPU")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--output", type=Path, default=Path("runs/speed.json"))
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.brief:
            run([name for name in options.only if name in ("step", "rows")], brief(Path(folder)), options.output)
        else:
            run(options.only, quick(Path(folder)) if options.quick else Scale(Path(folder)), options.output)


def brief(folder: Path) -> Scale:
    turns = {"BERT-base": 15, "MiniLM-L6": 30, "two-layer": 40}
    return Scale(folder, turns=turns, vocabularies=(32_000,), brief=True)


def quick(folder: Path) -> Scale:
    return Scale(
        folder,
        turns={"two-layer": 20, "MiniLM-L6": 5, "BERT-base": 3},
        block=2,
        tokens=8,
        repeats=100,
        memory_repeats=1,
        small=100_000,
        large=20_000,
        epoch=128_000,
        ragged=(10_000, 100_000),
    )


def run(sections: Sequence[str], scale: Scale, output: Path) -> list[Line]:
    """Measures, prints each line at once, and writes the JSON file and the plot after each section."""
    hush()
    output.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    print(as_row("what", "reference", "", "", "LSTSD", "ratio", "95 % interval", "goal", ""))
    for name in sections:
        for line in SECTIONS[name](scale):
            lines.append(line)
            print(row(line), flush=True)
        rows = [asdict(line) | {"holds": line.holds} for line in lines]
        output.write_text(json.dumps({"machine": machine(), "lines": rows}, indent=1) + "\n")
        plot(lines, output.with_suffix(".png"))
    return lines


def row(line: Line) -> str:
    goal = "" if not line.goal else f"{'>=' if line.at_least else '<='} {line.goal:g}"
    return as_row(
        f"{line.section}: {line.what}",
        line.reference,
        f"{line.reference_median:.4g}",
        line.unit,
        f"{line.lstsd_median:.4g}",
        f"{line.ratio:.3f}",
        f"{line.low:.3f} - {line.high:.3f}",
        goal,
        {True: "holds", False: "FAILS", None: ""}[line.holds],
    )


def as_row(*cells: str) -> str:
    return "{:74} {:27} {:>8} {:2} {:>8} {:>8}  {:17} {:>8}  {}".format(*cells).rstrip()


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load_average": os.getloadavg()[1],
    }


def plot(lines: Sequence[Line], path: Path) -> None:
    """Draws the ratios with their intervals, and the goals."""
    figure, axes = plt.subplots(figsize=(11, 1 + 0.24 * len(lines)))
    for height, line in enumerate(reversed(lines)):
        axes.plot([line.low, line.high], [height, height], color=COLORS[line.holds], linewidth=3, alpha=0.5)
        axes.plot(line.ratio, height, "o", color=COLORS[line.holds], markersize=4)
        if line.goal:
            axes.plot(line.goal, height, "k<" if not line.at_least else "k>", markersize=5)
    labels = [f"{line.section}: {line.what} / {line.reference}" for line in reversed(lines)]
    axes.set_yticks(range(len(lines)), labels, fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.5)
    axes.set_xlabel("ratio, with its 95 % interval; the triangle is the goal, and points to the good side")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    if not STEADY.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | STEADY)
    main()
