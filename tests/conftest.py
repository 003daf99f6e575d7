"""What several test files share: a small model, small GLUE files, and settings of the test process."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer, set_seed

from toys import BAD, GOOD

if "PYTEST_XDIST_WORKER" in os.environ:  # two test processes share two cores with the processes that they start
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Keeps what is imported by now out of `gc.collect`, which each training begins with: a third of a small run."""
    gc.collect()
    gc.freeze()


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, "the", "film", "was", "very", "a", "b")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a two-layer BERT and a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def text_layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with small SST-2 and STS-B files in GLUE's own layout, no text of which contains another."""
    root = tmp_path_factory.mktemp("glue")
    for task in ("SST-2", "STS-B"):
        (root / task).mkdir()
    for split, count in (("train", 48), ("dev", 16)):
        rows = [(f"{i} the film was {(BAD, GOOD)[i % 2][i // 2 % 4]} b{i}", i % 2) for i in range(count)]
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (root / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines = ["index\tsentence1\tsentence2\tscore"]
        lines += [f"{i}\t{text}\t{i} very {text}\t{5 * label}" for i, (text, label) in enumerate(rows)]
        (root / "STS-B" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(root)


@pytest.fixture(autouse=True)
def same_signal_handlers() -> Iterator[None]:
    """Restores the handlers that a Trainer replaced: a process that a later test forks must end at SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
