"""Predicts a score for a pair of texts, from a CSV file with the columns "text", "other" and "label".

python examples/regression.py --model distilbert-base-uncased --data pairs.csv --output_dir out
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Value
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, HfArgumentParser

from lstsd_hf import LSTSDConfig, LSTSDTrainer, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    max_length: int = 128


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    rows = add_sample_ids(Dataset.from_csv(arguments.data)).cast_column("label", Value("float32"))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    def tokenize(batch: dict) -> dict:
        return tokenizer(batch["text"], batch["other"], truncation=True, max_length=arguments.max_length)

    parts = rows.map(tokenize, batched=True).train_test_split(0.1, seed=config.seed)
    trainer = LSTSDTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=1),
        args=config,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {
            "mean_absolute_error": float(np.abs(found.predictions.ravel() - found.label_ids).mean())
        },
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
