"""Records what a plain Trainer predicts for each sample in each epoch, and trains it as before.

    python examples/record_a_plain_trainer.py --model distilbert-base-uncased --data reviews.csv --output_dir out

`--data` is a CSV file with the columns "text" and "label". Nothing is distilled: the weights and losses equal those of
the same script without the marked line. At the end it prints the ten rows whose labels are most likely to be wrong.
"""

from dataclasses import dataclass

from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from lstsd_hf import PredictionRecorder, read_history

Trainer = PredictionRecorder(Trainer)  # the line


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    max_length: int = 128


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses()
    rows = Dataset.from_csv(arguments.data).class_encode_column("label")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    def tokenize(batch: dict) -> dict:
        return tokenizer(batch["text"], truncation=True, max_length=arguments.max_length)

    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            arguments.model, num_labels=rows.features["label"].num_classes
        ),
        args=config,
        train_dataset=rows.map(tokenize, batched=True),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    for sample in read_history(config.output_dir).sort("noise_score", reverse=True).select(range(10)):
        print(f"{sample['noise_score']:.2f}", rows[sample["sample_id"]]["label"], rows[sample["sample_id"]]["text"])


if __name__ == "__main__":
    main()
