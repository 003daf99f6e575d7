"""A cross-encoder with sentence-transformers, from a CSV file with the columns "text", "other" and "label" (0 or 1).

python examples/cross_encoder.py --model distilroberta-base --data pairs.csv --output_dir out
"""

from dataclasses import dataclass

import sentence_transformers.cross_encoder as cross_encoder
from datasets import Dataset
from transformers import HfArgumentParser

from lstsd_hf import DistillationArguments, LSTSDMixin, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str


class CrossEncoderTrainer(LSTSDMixin, cross_encoder.CrossEncoderTrainer):
    """The trainer of sentence-transformers, which also learns from its own earlier predictions."""


@dataclass
class CrossEncoderConfig(DistillationArguments, cross_encoder.CrossEncoderTrainingArguments):
    """The settings of sentence-transformers and of the method."""


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, CrossEncoderConfig)).parse_args_into_dataclasses()
    trainer = CrossEncoderTrainer(
        model=cross_encoder.CrossEncoder(arguments.model, num_labels=1),
        args=config,
        train_dataset=add_sample_ids(Dataset.from_csv(arguments.data).select_columns(["text", "other", "label"])),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
