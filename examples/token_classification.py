"""Tags words: named entities from a CoNLL file, or parts of speech from a CoNLL-U file of Universal Dependencies.

    python examples/token_classification.py --model distilbert-base-cased --data train.conll --eval_data dev.conll \
        --output_dir out

The first token of a word carries the word's tag; its other tokens have no label. The prediction for each labelled
token is recorded.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    HfArgumentParser,
)

from lstsd_hf import LSTSDConfig, LSTSDTrainer, add_sample_ids

NO_LABEL = -100


@dataclass
class Arguments:
    """The model and the training data."""

    model: str
    data: str
    eval_data: str
    max_length: int = 128


def read_sentences(path: str) -> Dataset:
    """Reads the columns "tokens" and "tags", with a row for each sentence."""
    is_universal = path.endswith(".conllu")
    word, tag = (1, 3) if is_universal else (0, 1)
    tokens, tags = [], []
    for block in re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8")):
        lines = [line.split("\t") for line in block.splitlines() if line.strip()]
        if is_universal:  # skip comments, multiword tokens and empty nodes
            lines = [line for line in lines if line[0].isdigit()]
        if lines:
            tokens.append([line[word] for line in lines])
            tags.append([line[tag] for line in lines])
    return Dataset.from_dict({"tokens": tokens, "tags": tags})


def accuracy(found: EvalPrediction) -> dict[str, float]:
    counted = found.label_ids != NO_LABEL
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids)[counted].mean())}


def main() -> None:
    arguments, config = HfArgumentParser((Arguments, LSTSDConfig)).parse_args_into_dataclasses()
    rows = {name: read_sentences(getattr(arguments, name)) for name in ("data", "eval_data")}
    names = sorted({tag for tags in rows["data"]["tags"] for tag in tags})
    number = {name: i for i, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)

    def tokenize(batch: dict) -> dict:
        limit = arguments.max_length
        encoded = tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=limit)
        encoded["labels"] = []
        for i, tags in enumerate(batch["tags"]):
            words = encoded.word_ids(i)
            firsts = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
            encoded["labels"].append(
                [
                    number.get(tags[word], NO_LABEL) if is_first else NO_LABEL
                    for word, is_first in zip(words, firsts, strict=True)
                ]
            )
        return encoded

    trainer = LSTSDTrainer(
        model=AutoModelForTokenClassification.from_pretrained(
            arguments.model, id2label=dict(enumerate(names)), label2id=number
        ),
        args=config,
        train_dataset=add_sample_ids(rows["data"]).map(tokenize, batched=True),
        eval_dataset=rows["eval_data"].map(tokenize, batched=True),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
