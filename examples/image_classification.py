"""Classifies images, from a folder that holds one folder of images for each class.

    python examples/image_classification.py --model google/vit-base-patch16-224-in21k --data images --output_dir out \
        --remove_unused_columns false

Images are read and resized when a batch needs them; `--remove_unused_columns false` keeps their column until then.
"""

from dataclasses import dataclass

import torch
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, HfArgumentParser

from lstsd_hf import LSTSDConfig, LSTSDTrainer, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    rows = add_sample_ids(load_dataset("imagefolder", data_dir=arguments.data, split="train"))
    names = rows.features["label"].names
    processor = AutoImageProcessor.from_pretrained(arguments.model)

    def collate(features: list[dict]) -> dict:
        images = [feature["image"].convert("RGB") for feature in features]
        labels = torch.tensor([feature["label"] for feature in features])
        return {**processor(images, return_tensors="pt"), "labels": labels}

    parts = rows.train_test_split(0.1, seed=config.seed)
    trainer = LSTSDTrainer(
        model=AutoModelForImageClassification.from_pretrained(
            arguments.model, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
        ),
        args=config,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=processor,
        data_collator=collate,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
