"""Supervised fine-tuning with TRL, from a JSON lines file with the fields "prompt" and "completion".

    python examples/sft.py --model HuggingFaceTB/SmolLM2-135M --data pairs.jsonl --output_dir out

The mixin goes in front of `SFTTrainer`, and the method's settings in front of `SFTConfig`. Only the completion is
predicted, so only its tokens have teachers. Packing joins samples, so it stays off.
"""

from dataclasses import dataclass

import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from lstsd_hf import DistillationArguments, LSTSDMixin, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str


class SFTTrainer(LSTSDMixin, trl.SFTTrainer):
    """TRL's trainer, which also learns from its own earlier predictions."""


@dataclass
class SFTConfig(DistillationArguments, trl.SFTConfig):
    """The settings of TRL and of the method."""


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, SFTConfig)).parse_args_into_dataclasses()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model),
        args=config,
        train_dataset=add_sample_ids(Dataset.from_json(arguments.data)),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
