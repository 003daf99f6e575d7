"""Small real models whose samples have many rows, data for them, and a collator: taggers, spans, language models."""

import math
from typing import Any

import datasets
import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

NO, VOCABULARY, K = -100, 40, 3
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
GPT |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
KINDS = ("tokens", "spans", "vocabulary")
# For tests in which padding must not change the base loss: BERT's own loss of spans covers padding too.
SPAN_LENGTH = {"spans": 6}


def make(kind: str) -> Any:
    set_seed(0)
    if kind == "tokens":
        return BertForTokenClassification(BertConfig(**BERT, num_labels=4))
    if kind == "spans":
        return BertForQuestionAnswering(BertConfig(**BERT))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**GPT))
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def data(kind: str, count: int = 24, seed: int = 0, length: int | None = None) -> datasets.Dataset:
    """`count` samples of 3 to 9 tokens, or of `length` tokens each."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tokens = rng.integers(1, VOCABULARY, length or rng.integers(3, 10)).tolist()
        row: dict[str, Any] = {"input_ids": tokens}
        if kind == "tokens":
            row["labels"] = [NO, *(token % 4 for token in tokens[1:])]
        elif kind == "spans":
            start = int(np.argmax(tokens))
            row |= {"start_positions": start, "end_positions": min(start + 1, len(tokens) - 1)}
        else:
            row["labels"] = tokens
        rows.append(row)
    return datasets.Dataset.from_list(rows)


class Pad:
    """Pads a batch on one side, to a length that is a multiple of `multiple`."""

    def __init__(self, side: str = "right", multiple: int = 1) -> None:
        self.side, self.multiple = side, multiple

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(feature["input_ids"]) for feature in features)
        longest = math.ceil(longest / self.multiple) * self.multiple
        batch: dict[str, list[Any]] = {"input_ids": [], "attention_mask": []}
        for feature in features:
            length = len(feature["input_ids"])
            left = longest - length if self.side == "left" else 0
            right = longest - length - left
            batch["input_ids"].append([0] * left + feature["input_ids"] + [0] * right)
            batch["attention_mask"].append([0] * left + [1] * length + [0] * right)
            if "labels" in feature:
                batch.setdefault("labels", []).append([NO] * left + feature["labels"] + [NO] * right)
            for name in ("start_positions", "end_positions"):
                if name in feature:
                    batch.setdefault(name, []).append(feature[name] + left)
        return {name: torch.tensor(values) for name, values in batch.items()}
