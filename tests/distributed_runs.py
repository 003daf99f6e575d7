"""Started by torchrun from test_distributed.py: trains each variant and leaves weights and store in a folder."""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import Trainer

from lstsd_hf import LSTSDTrainer, add_sample_ids
from toys import config, rows, tiny_bert, weights


def sum_over_count(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


BASE = {
    "num_train_epochs": 4,
    "teacher_trust": "constant",
    "mini_generation_epochs": 1,
    "learning_rate": 0.1,
    "seed": 7,
    "eval_strategy": "epoch",
    # The short last micro-batch of an evaluation is where a mean over processes would differ.
    "per_device_eval_batch_size": 8,
}

# name: rows, batch over all processes, head, settings
VARIANTS = {
    "classes": (64, 32, "classes", {}),
    "regression": (64, 32, "regression", {"learning_rate": 0.02}),
    "multi_label": (64, 32, "multi_label", {}),
    "accumulated": (96, 16, "classes", {"gradient_accumulation_steps": 2}),
    "label smoothing": (64, 32, "classes", {"label_smoothing_factor": 0.1}),
    "sum over count": (64, 32, "classes", {"compute_loss_func": sum_over_count}),
    "workers": (64, 32, "classes", {"dataloader_num_workers": 1, "train_sampling_strategy": "sequential"}),
    "dispatched": (64, 32, "classes", {"accelerator_config": {"dispatch_batches": True}}),
    "padded": (42, 16, "classes", {}),
    "dropped": (42, 16, "classes", {"dataloader_drop_last": True}),
    "fewer than a batch": (3, 8, "classes", {}),
}


def main(folder: Path, world: int) -> None:
    for name, (count, batch, head, changes) in VARIANTS.items():
        changes = dict(changes)
        options = {"compute_loss_func": changes.pop("compute_loss_func", None)}
        settings = config(folder / name, **BASE | {"per_device_train_batch_size": batch // world} | changes)
        trainer = LSTSDTrainer(
            tiny_bert(head, dropout=0.0),
            settings,
            train_dataset=add_sample_ids(rows(count, head)),
            eval_dataset=rows(32, head, seed=1),
            **options,
        )
        trainer.train()
        assert isinstance(trainer, Trainer)
        if trainer.is_world_process_zero():
            torch.save(weights(trainer.model), folder / name / "weights.pt")
            (folder / name / "log.json").write_text(json.dumps(trainer.state.log_history))
        trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    import os

    main(Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", "1")))
