"""Translation, summarisation or paraphrasing, from a CSV file with the columns "source" and "target".

    python examples/seq2seq.py --model google-t5/t5-small --data pairs.csv --output_dir out --predict_with_generate

The mixin goes in front of `Seq2SeqTrainer`, and the method's settings in front of `Seq2SeqTrainingArguments`.
"""

from dataclasses import dataclass

from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from lstsd_hf import DistillationArguments, LSTSDMixin, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    max_length: int = 128


class Trainer(LSTSDMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer`, which also learns from its own earlier predictions."""


@dataclass
class Config(DistillationArguments, Seq2SeqTrainingArguments):
    """The settings of `Seq2SeqTrainer` and of the method."""


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, Config)).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model)

    def tokenize(batch: dict) -> dict:
        limit = arguments.max_length
        return tokenizer(batch["source"], text_target=batch["target"], truncation=True, max_length=limit)

    rows = add_sample_ids(Dataset.from_csv(arguments.data)).map(tokenize, batched=True)
    parts = rows.train_test_split(0.1, seed=config.seed)
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
