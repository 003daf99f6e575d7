"""A reward model with TRL, from a JSON lines file with the fields "chosen" and "rejected".

    python examples/reward.py --model Qwen/Qwen2.5-0.5B --data preferences.jsonl --output_dir out

The two scores of a pair are two classes, of which the chosen one is right.
"""

from dataclasses import dataclass

import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from lstsd_hf import DistillationArguments, LSTSDMixin, add_sample_ids


@dataclass
class Arguments:
    """What to train on what."""

    model: str
    data: str


class RewardTrainer(LSTSDMixin, trl.RewardTrainer):
    """TRL's trainer, which learns from its past."""


@dataclass
class RewardConfig(DistillationArguments, trl.RewardConfig):
    """TRL's settings, and the method's."""


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
