"""Trains, reports which labels look wrong, drops these rows, and trains again.

    python examples/clean_labels.py --model distilbert-base-uncased --data reviews.csv --output_dir out

`--data` is a CSV file with the columns "text" and "label". The report is out/_report/report.html, the remaining rows
are out/clean.csv, and the second run is in out/retrained.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, HfArgumentParser

from lstsd_hf import LSTSDConfig, LSTSDTrainer, clean, write_report


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    max_length: int = 128


def train(arguments: Arguments, config: LSTSDConfig, data: str) -> None:
    """Trains on the rows of a file. A row's position is its sample id."""
    rows = Dataset.from_csv(data).class_encode_column("label")
    names = rows.features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    trainer = LSTSDTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            arguments.model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
        ),
        args=config,
        train_dataset=rows.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=arguments.max_length), batched=True
        ),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    folder = Path(config.output_dir)
    # Early predictions say most about wrong labels, so keep every epoch.
    train(arguments, dataclasses.replace(config, logits_retention="all"), arguments.data)
    print(write_report(folder, arguments.data, "text"))
    print(clean(folder, arguments.data, folder / "clean.csv", drop=True))
    again = dataclasses.replace(config, output_dir=str(folder / "retrained"), logits_dir=None)
    train(arguments, again, str(folder / "clean.csv"))


if __name__ == "__main__":
    main()
