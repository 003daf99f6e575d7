"""The script that test_nodes.py starts with torchrun on each of two nodes: trains into folders of its own node.

node_runs.py FOLDER [CUT]     in CUT it stops after the checkpoint of step 4; a later start with CUT as FOLDER resumes
"""

import gc
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

import many_toys
from lstsd_hf import LSTSDTrainer, add_sample_ids
from toys import config, rows, tiny_bert, weights


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def main(folder: Path, stop: int) -> None:
    settings = config(
        folder,
        num_train_epochs=4,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=2,
        save_on_each_node=True,
        learning_rate=0.02,
        seed=3,
    )
    trainer = LSTSDTrainer(tiny_bert(), settings, train_dataset=add_sample_ids(rows(48)), callbacks=[StopAfter(stop)])
    trainer.train(resume_from_checkpoint=True if any(folder.glob("checkpoint-*")) else None)
    if trainer.is_local_process_zero():
        torch.save(weights(trainer.model), folder / "weights.pt")
    many_rows(folder / "many", stop)


def many_rows(folder: Path, stop: int) -> None:
    """The same for a language model: any number of rows for each sample, and the largest logits of a vocabulary."""
    settings = config(
        folder,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        save_strategy="steps",
        save_steps=2,
        save_on_each_node=True,
        learning_rate=0.02,
        logits_top_k=many_toys.K,
    )
    trainer = LSTSDTrainer(
        many_toys.make("vocabulary"),
        settings,
        train_dataset=add_sample_ids(many_toys.data("vocabulary", 48)),
        data_collator=many_toys.Pad(),
        callbacks=[StopAfter(stop)],
    )
    trainer.train(resume_from_checkpoint=True if any(folder.glob("checkpoint-*")) else None)
    if trainer.is_local_process_zero():
        torch.save(weights(trainer.model), folder / "weights.pt")


if __name__ == "__main__":
    for folder, stop in zip(sys.argv[1:], (0, 4), strict=False):
        main(Path(folder), stop)
    gc.collect()  # see lstsd_hf.glue.run.command
    torch.distributed.destroy_process_group()
