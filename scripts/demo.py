"""Fine-tunes the packaged MiniLM on Rotten Tomatoes with the plain Trainer and with LSTSD, and compares them.

It ends with the report of the LSTSD run: a page about what the model thought of each training sample, and when.

    python scripts/demo.py [--output_dir runs/demo] [--flag value ...]

Both runs read configs/demo.yaml, with the same seed, data and budget. Further flags go to both of them.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
TRAIN = [sys.executable, "-m", "lstsd_hf", "train", str(CONFIG)]
TRAINERS = {"plain": "transformers.Trainer", "lstsd": "LSTSDTrainer"}
ROWS = (
    ("accuracy", "eval_accuracy", "{:.4f}"),
    ("evaluation loss", "eval_loss", "{:.4f}"),
    ("training time", "train_runtime", "{:.0f} s"),
)


def device_flags() -> list[str]:
    """bfloat16 where this machine multiplies matrices faster in it: some need several times as long."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type == "cuda":
        return ["--bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    if device.type != "cpu":
        return []
    return ["--use_cpu", "--bf16"] if seconds(torch.bfloat16) < seconds(torch.float32) else ["--use_cpu"]


def seconds(dtype: torch.dtype) -> float:
    """The best of several times for a matrix product of the model's size."""
    tokens, weight = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        tokens @ weight
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Runs both trainers, each in a fresh process so that neither finds anything warm, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    parsed, further = parser.parse_known_args()
    root, more = parsed.output_dir, [*device_flags(), *further]

    results = {}
    for trainer, name in TRAINERS.items():
        out = root / trainer
        command = [*TRAIN, "--trainer", trainer, "--output_dir", str(out)]
        if trainer == "lstsd":  # the other one keeps no predictions to report on
            command += ["--report", "true"]
        print(f"\n{name}:", *command, *more, flush=True)
        subprocess.run([*command, *more], check=True)
        results[trainer] = json.loads((out / "all_results.json").read_text(encoding="utf-8"))

    print(f"\n{'':16}" + "".join(f"{name:>22}" for name in TRAINERS.values()))
    for title, key, form in ROWS:
        print(f"{title:16}" + "".join(f"{form.format(results[trainer][key]):>22}" for trainer in TRAINERS))
    print(f"\nModels, metrics and logs: {root / 'plain'} and {root / 'lstsd'}")
    print(f"What the model thought of each training sample: {root / 'lstsd' / '_report' / 'report.html'}")


if __name__ == "__main__":
    main()
