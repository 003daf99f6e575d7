"""Classifies texts, from a CSV file with the columns "text" and "label".

    python examples/text_classification.py --model distilbert-base-uncased --data reviews.csv --output_dir out

On two processes:

    accelerate launch --num_processes 2 examples/text_classification.py --model distilbert-base-uncased \
        --data reviews.csv --output_dir out
"""

from dataclasses import dataclass

from datasets import Dataset
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
    rows = add_sample_ids(Dataset.from_csv(arguments.data)).class_encode_column("label")
    names = rows.features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    def tokenize(batch: dict) -> dict:
        return tokenizer(batch["text"], truncation=True, max_length=arguments.max_length)

    parts = rows.map(tokenize, batched=True).train_test_split(0.1, seed=config.seed)
    trainer = LSTSDTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            arguments.model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
        ),
        args=config,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
