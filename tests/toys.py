"""Small real objects for the tests: a two-layer BERT in memory, data it can learn, and ways to compare runs."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import xxhash
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

from lstsd_hf import LSTSDConfig

VOCABULARY = 60
TOKENS = 8
GOOD, BAD = ("good", "fine", "great", "lovely"), ("bad", "poor", "awful", "dull")

# Each head with what its model's config says of it.
HEADS: dict[str, dict[str, Any]] = {
    "classes": {"num_labels": 3},
    "regression": {"num_labels": 1},
    "multi_label": {"num_labels": 4, "problem_type": "multi_label_classification"},
}


def tiny_bert(head: str = "classes", seed: int = 0, dropout: float = 0.1, **changes: Any) -> Any:
    """A two-layer BERT with random weights that depend on the seed alone."""
    set_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,  # far enough from uniform predictions for a teacher to have something to say
    }
    return BertForSequenceClassification(BertConfig(**settings | HEADS[head] | changes))


def rows(count: int, head: str = "classes", seed: int = 0) -> datasets.Dataset:
    """`count` rows of random tokens, with a label that the first token decides."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (count, TOKENS))
    first = tokens[:, 0]
    labels: Any = {
        "classes": first % 3,
        "regression": (first / VOCABULARY).astype(np.float32),
        "multi_label": ((first[:, None] >> np.arange(4)) & 1).astype(np.float32),
    }[head]
    columns = {"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist(), "label": labels.tolist()}
    data = datasets.Dataset.from_dict(columns)
    return data.cast_column("label", datasets.Value("float32")) if head == "regression" else data


def config(folder: Path, **changes: Any) -> LSTSDConfig:
    """Settings under which a run takes a fraction of a second, and compares to the last bit."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 5,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-2,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logits_dtype": "float32",
        "logits_retention": "all",
    }
    return LSTSDConfig(**settings | changes)


def as_first_written(store: Path) -> None:
    """Turns a store into what version 0.1.0 left: without statistics, and with a note of the steps per epoch alone."""
    manifest = json.loads((store / "store.json").read_text())
    names = ("format", "version", "num_samples", "row_shape", "dtype", "fingerprint", "labels", "sealed", "open")
    old = {name: manifest[name] for name in names}
    old["note"] = {name: steps for name, steps in manifest["note"].items() if name == "steps_per_epoch"}
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(old, sort_keys=True).encode())
    (store / "store.json").write_text(json.dumps(old | {"checksum": checksum}, indent=2) + "\n")
    for key in manifest.get("statistics", {}):
        name, epoch = key.split()
        (store / f"{name}-{int(epoch):04d}.npy").unlink()


def weights(model: torch.nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def logged(trainer: Any, name: str) -> list[float]:
    """What the trainer logged under a name, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class Preempted(Exception):  # noqa: N818
    """The end of a run that `StopAfter` interrupts."""


class StopAfter(TrainerCallback):
    """Interrupts a run after the checkpoint of a step was saved; None: never."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Preempted
