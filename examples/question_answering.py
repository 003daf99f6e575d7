"""Extractive question answering, from a JSON file in SQuAD's format.

    python examples/question_answering.py --model distilbert-base-uncased --data train-v1.1.json --output_dir out

A long text is cut into overlapping features. Each feature is a sample, whose start and end logits are recorded. A
feature that does not hold the whole answer, or whose question has none, points at its first token.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding, HfArgumentParser

from lstsd_hf import LSTSDConfig, LSTSDTrainer, add_sample_ids


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    max_length: int = 384
    stride: int = 128


def read_questions(path: str) -> Dataset:
    """Reads the columns "question", "context", "answer" and "start"; start is -1 where there is no answer."""
    paragraphs = [
        paragraph
        for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
    ]
    rows = []
    for paragraph in paragraphs:
        for question in paragraph["qas"]:
            answer = next(iter(question["answers"]), {"text": "", "answer_start": -1})
            rows.append(
                {
                    "question": question["question"].strip(),
                    "context": paragraph["context"],
                    "answer": answer["text"],
                    "start": answer["answer_start"],
                }
            )
    return Dataset.from_list(rows)


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    def cut(batch: dict) -> dict:
        features = tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=arguments.max_length,
            stride=arguments.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = features.pop("overflow_to_sample_mapping"), features.pop("offset_mapping")
        features["start_positions"], features["end_positions"] = [], []
        for i, owner in enumerate(owners):
            start = batch["start"][owner]
            end = start + len(batch["answer"][owner])
            inside = [
                place
                for place, (part, (left, right)) in enumerate(zip(features.sequence_ids(i), offsets[i], strict=True))
                if part == 1 and left < end and right > start
            ]
            is_whole = bool(inside) and offsets[i][inside[0]][0] <= start and offsets[i][inside[-1]][1] >= end
            features["start_positions"].append(inside[0] if is_whole else 0)
            features["end_positions"].append(inside[-1] if is_whole else 0)
        return features

    questions = read_questions(arguments.data)
    features = questions.map(cut, batched=True, remove_columns=questions.column_names)
    trainer = LSTSDTrainer(
        model=AutoModelForQuestionAnswering.from_pretrained(arguments.model),
        args=config,
        train_dataset=add_sample_ids(features),  # one id for each feature: a question may have several
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
