"""Trains a small classifier on the predictions of a large one, which are kept on disk.

    python examples/text_classification.py --model bert-large-uncased --data reviews.csv --output_dir teacher
    python examples/distillation.py --model distilbert-base-uncased --teacher teacher --data reviews.csv \
        --output_dir out

`--data` is a CSV file with the columns "text" and "label". With `--long_term_weight 0 --short_term_weight 0` only the
large model teaches.
"""

import os
from dataclasses import dataclass, replace

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, HfArgumentParser

from lstsd_hf import LSTSDConfig, LSTSDTrainer, add_sample_ids, record_predictions


@dataclass
class Arguments:
    """The student, its teacher and the training data."""

    model: str
    teacher: str
    data: str
    max_length: int = 128


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    rows = add_sample_ids(Dataset.from_csv(arguments.data)).class_encode_column("label")
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)  # both models read the same tokens
    rows = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=arguments.max_length), batched=True
    )
    teacher = AutoModelForSequenceClassification.from_pretrained(arguments.teacher)
    store = os.path.join(config.output_dir, "_teacher")
    record_predictions(teacher, rows, store, processing_class=tokenizer)

    names = teacher.config.id2label
    trainer = LSTSDTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            arguments.model, id2label=names, label2id={name: i for i, name in names.items()}
        ),
        args=replace(config, outside_teacher=store),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
