"""A causal language model, from a text file.

    python examples/causal_lm.py --model distilgpt2 --data text.txt --output_dir out

The text is cut into blocks, and each block is a sample. For each predicted token the run keeps the `--logits_top_k`
most probable classes, and the total probability of all others.
"""

from dataclasses import dataclass
from itertools import chain

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, default_data_collator

from lstsd_hf import LSTSDConfig, LSTSDTrainer, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    block_size: int = 128


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    lines = Dataset.from_text(arguments.data)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    def cut(batch: dict) -> dict:
        tokens = list(chain.from_iterable(tokenizer([line + "\n" for line in batch["text"]])["input_ids"]))
        size = arguments.block_size
        blocks = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)]
        return {"input_ids": blocks, "labels": blocks}

    trainer = LSTSDTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model),
        args=config,
        train_dataset=add_sample_ids(lines.map(cut, batched=True, remove_columns=lines.column_names)),
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
