"""Language models through the trainers that people use for them, with the mixin and nothing else."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    set_seed,
)

from lstsd_hf import DistillationArguments, LogitsStore, LSTSDMixin, LSTSDTrainer
from toys import config, logged, weights

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(40))]
SMALL: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "mini_generation_epochs": 1,
    "logits_top_k": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    model = tokenizers.Tokenizer(words)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def token_lists(count: int = 16) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, len(WORDS), rng.integers(4, 12)).tolist() for _ in range(count)]


def sft_trainer(folder: Any, tokenizer: Any, **changes: Any) -> Any:
    trl = pytest.importorskip("trl")

    class Trainer(LSTSDMixin, trl.SFTTrainer): ...

    @dataclass
    class Config(DistillationArguments, trl.SFTConfig): ...

    set_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, pad_token_id=0, eos_token_id=1, **shape)
    )
    texts = [" ".join(WORDS[token] for token in tokens) for tokens in token_lists()]
    settings = {**SMALL, "bf16": False, "max_length": 32, "gradient_checkpointing": False, **changes}
    return Trainer(
        model,
        Config(output_dir=str(folder), **settings),
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )


def test_supervised_fine_tuning_has_teachers(tmp_path, tokenizer):
    trainer = sft_trainer(tmp_path, tokenizer)
    trainer.train()
    assert logged(trainer, "short_term_coverage")[-1] == 1.0
    assert logged(trainer, "long_term_loss")[-1] > 0
    store = LogitsStore.open(tmp_path / "_logits")
    offsets = store.epoch_parts(2)["offsets"]
    # Each token but the first is predicted, and so is the end token that SFTTrainer adds.
    assert np.diff(offsets).tolist() == [len(tokens) for tokens in token_lists()]
    assert store.vocabulary == len(WORDS)
    assert np.exp(np.float32(store.epoch_rows(2))).sum(axis=1).max() <= 1.001
    assert not logged(trainer, "mean_token_accuracy")  # SFTTrainer computes it in its loss without logits
    assert {"eval_mean_token_accuracy", "eval_entropy"} <= trainer.evaluate(trainer.train_dataset).keys()


def test_a_loss_that_would_not_be_called_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"loss_type='dft'.*Give another loss as compute_loss_func"):
        sft_trainer(tmp_path / "refused", tokenizer, loss_type="dft").train()
    trainer = sft_trainer(tmp_path / "given", tokenizer)
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean()
    trainer.train()
    assert logged(trainer, "short_term_coverage")[-1] == 1.0


def test_packed_samples_are_refused(tmp_path, tokenizer):
    trainer = sft_trainer(tmp_path, tokenizer, packing=True)
    with pytest.raises(ValueError, match="Turn packing off: it joins samples, and their ids are lost"):
        trainer.train()


def test_translation_has_teachers(tmp_path, tokenizer):
    class Trainer(LSTSDMixin, Seq2SeqTrainer): ...

    @dataclass
    class Config(DistillationArguments, Seq2SeqTrainingArguments): ...

    set_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, pad_token_id=0, **shape)
    )
    rows = [{"input_ids": tokens, "labels": tokens[:-1]} for tokens in token_lists()]
    trainer = Trainer(
        model,
        Config(output_dir=str(tmp_path), **SMALL),
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    trainer.train()
    assert logged(trainer, "short_term_coverage")[-1] == 1.0
    assert logged(trainer, "long_term_loss")[-1] > 0
    offsets = LogitsStore.open(tmp_path / "_logits").epoch_parts(2)["offsets"]
    assert np.diff(offsets).tolist() == [len(tokens) - 1 for tokens in token_lists()]


@pytest.mark.parametrize("own_loss", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_evaluation_before_training_changes_nothing_and_is_the_plain_trainers(tmp_path, family, own_loss):
    def by_count(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    tokens = np.random.default_rng(0).integers(4, 30, (16, 6)).tolist()
    data = datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    small = {"vocab_size": 30, "bos_token_id": 2, "eos_token_id": 3}
    small |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    found = []
    for trainer_class in (Trainer, LSTSDTrainer):
        set_seed(0)
        if family == "gpt2":  # the plain Trainer counts its first labels as well
            model = GPT2LMHeadModel(GPT2Config(**small, n_positions=16))
        else:
            model = LlamaForCausalLM(LlamaConfig(**small, intermediate_size=32, max_position_embeddings=16))
        off = {"long_term_weight": 0.0, "short_term_weight": 0.0, "num_train_epochs": 2}
        options = {"compute_loss_func": by_count} if own_loss else {}
        arguments = config(tmp_path / trainer_class.__name__, **off)
        trainer = trainer_class(model, arguments, train_dataset=data, eval_dataset=data, **options)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        found.append(([before, trainer.evaluate()["eval_loss"]], weights(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
