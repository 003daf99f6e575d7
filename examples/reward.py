"""A reward model with TRL, from a JSON lines file with the fields "chosen" and "rejected".

    python examples/reward.py --model Qwen/Qwen2.5-0.5B --data preferences.jsonl --output_dir out

The two scores of a pair count as the logits of two classes, and the chosen answer is the right class.
"""

from dataclasses import dataclass

import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from lstsd_hf import DistillationArguments, LSTSDMixin, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str


class RewardTrainer(LSTSDMixin, trl.RewardTrainer):
    """TRL's trainer, which also learns from its own earlier predictions."""


@dataclass
class RewardConfig(DistillationArguments, trl.RewardConfig):
    """The settings of TRL and of the method."""


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, RewardConfig)).parse_args_into_dataclasses()
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=1),
        args=config,
        train_dataset=add_sample_ids(Dataset.from_json(arguments.data)),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
