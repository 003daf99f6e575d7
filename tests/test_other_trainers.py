"""The mixin with other trainers: Seq2SeqTrainer, TRL's RewardTrainer, sentence-transformers' CrossEncoderTrainer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from lstsd_hf import DistillationArguments, LogitsStore, LSTSDMixin, add_sample_ids
from toys import BAD, GOOD, logged, rows, tiny_bert, weights

trl = pytest.importorskip("trl")
sentence_transformers = pytest.importorskip("sentence_transformers")
cross_encoder = pytest.importorskip("sentence_transformers.cross_encoder")

ROWS = 20
COMMON = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}
METHOD = {
    "mini_generation_epochs": 1,
    "teacher_trust": "constant",
    "logits_dtype": "float32",
    "logits_retention": "all",
}
OFF = {"long_term_weight": 0.0, "short_term_weight": 0.0}


# ---- what a user would write


class SequenceTrainer(LSTSDMixin, Seq2SeqTrainer):
    pass


@dataclass
class SequenceConfig(DistillationArguments, Seq2SeqTrainingArguments):
    pass


class PreferenceTrainer(LSTSDMixin, trl.RewardTrainer):
    pass


@dataclass
class PreferenceConfig(DistillationArguments, trl.RewardConfig):
    pass


class PairTrainer(LSTSDMixin, cross_encoder.CrossEncoderTrainer):
    pass


@dataclass
class PairConfig(DistillationArguments, cross_encoder.CrossEncoderTrainingArguments):
    pass


# ---- models and data


def preferences(seed: int = 0) -> datasets.Dataset:
    """Pairs of a liked and a disliked text, of different lengths, so that the shorter one is padded."""
    rng = np.random.default_rng(seed)
    texts = [{"chosen": f"the film was {GOOD[i % 4]}", "rejected": f"a very {BAD[i % 3]} b"} for i in range(ROWS)]
    for text in texts:
        text["chosen"] += " very" * int(rng.integers(0, 3))
    return datasets.Dataset.from_list(texts)


def pairs(labels: int, seed: int = 0) -> datasets.Dataset:
    """Pairs of texts with a label: 0 or 1, or one of three classes."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, max(labels, 2), ROWS).tolist()
    words = [GOOD[:2], BAD[:2], ("a", "b")]
    texts = [(f"the film was {GOOD[i % 4]}", f"a {words[kind][i % 2]} film") for i, kind in enumerate(kinds)]
    return datasets.Dataset.from_dict(
        {"sentence1": [one for one, _ in texts], "sentence2": [other for _, other in texts], "label": kinds}
    )


def scores_model(path: str) -> Any:
    """A model that gives each text one score, and its tokenizer."""
    set_seed(0)
    tokenizer = BertTokenizer.from_pretrained(path, eos_token="[SEP]")
    settings = BertConfig.from_pretrained(path, num_labels=1, initializer_range=0.2)
    return BertForSequenceClassification(settings), tokenizer


def scale_up(module: torch.nn.Module) -> None:
    """Makes random weights larger, so that predictions are far enough from uniform to differ from one another."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)


Make = Callable[..., Any]


def make_sequence(path: str, folder: Path, mixed: bool, ids: bool, **changes: Any) -> Any:
    config_class, trainer_class = (
        (SequenceConfig, SequenceTrainer) if mixed else (Seq2SeqTrainingArguments, Seq2SeqTrainer)
    )
    data = rows(ROWS)
    return trainer_class(
        tiny_bert(),
        config_class(str(folder), **COMMON | changes),
        train_dataset=add_sample_ids(data) if ids else data,
        eval_dataset=rows(ROWS, seed=1),
    )


def make_preference(path: str, folder: Path, mixed: bool, ids: bool, **changes: Any) -> Any:
    config_class, trainer_class = (
        (PreferenceConfig, PreferenceTrainer) if mixed else (trl.RewardConfig, trl.RewardTrainer)
    )
    model, tokenizer = scores_model(path)
    data = preferences()
    return trainer_class(
        model,
        config_class(str(folder), **COMMON | changes),
        train_dataset=add_sample_ids(data) if ids else data,
        eval_dataset=preferences(seed=1),
        processing_class=tokenizer,
    )


def make_pair(labels: int) -> Make:
    def make(path: str, folder: Path, mixed: bool, ids: bool, **changes: Any) -> Any:
        config_class, trainer_class = (
            (PairConfig, PairTrainer)
            if mixed
            else (cross_encoder.CrossEncoderTrainingArguments, cross_encoder.CrossEncoderTrainer)
        )
        set_seed(0)
        model = cross_encoder.CrossEncoder(path, num_labels=labels, device="cpu")
        scale_up(model)
        data, held_out = pairs(labels), pairs(labels, seed=1)
        return trainer_class(
            model=model,
            args=config_class(str(folder), **COMMON | changes),
            train_dataset=add_sample_ids(data) if ids else data,
            eval_dataset=add_sample_ids(held_out) if ids and mixed else held_out,
        )

    return make


MAKES = {
    "sequence": make_sequence,
    "preference": make_preference,
    "pair, one label": make_pair(1),
    "pair, three labels": make_pair(3),
}
CLASSES = {"sequence": 3, "preference": 2, "pair, one label": 1, "pair, three labels": 3}


@pytest.fixture(scope="module", params=MAKES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(kind: str, model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nothing interrupts."""
    trainer = MAKES[kind](model, tmp_path_factory.mktemp("whole"), mixed=True, ids=True, **METHOD)
    trainer.train()
    return trainer


def store_of(trainer: Any) -> LogitsStore:
    return LogitsStore.open(Path(trainer.args.output_dir, "_logits"))


def test_teachers_speak_and_reach_the_weights(kind, whole, model, tmp_path):
    store = store_of(whole)
    assert store.sealed_epochs == [0, 1, 2]
    assert store.row_shape == (CLASSES[kind],)
    assert all(np.isfinite(store.read(epoch, range(ROWS))).all() for epoch in store.sealed_epochs)
    assert logged(whole, "short_term_coverage") == [0.0] * 3 + [1.0] * 6
    assert min(logged(whole, "short_term_loss")[3:]) > 0
    last = [entry for entry in whole.state.log_history if "loss" in entry][-1]
    parts = 0.4 * (last["long_term_loss"] + last["short_term_loss"])
    assert last["loss"] == pytest.approx(0.2 * last["base_loss"] + parts, rel=1e-3)
    off = MAKES[kind](model, tmp_path, mixed=True, ids=True, **METHOD, **OFF)
    off.train()
    assert not torch.allclose(weights(off.model), weights(whole.model), atol=1e-4)


def test_off_is_the_other_trainer_alone(kind, model, tmp_path):
    """The same weights bit for bit, the same losses in training and evaluation."""
    found = []
    for mixed in (False, True):
        changes = {**METHOD, **OFF} if mixed else {}
        trainer = MAKES[kind](model, tmp_path / str(mixed), mixed, ids=mixed, **changes)
        trainer.train()
        found.append((weights(trainer.model), logged(trainer, "loss"), trainer.evaluate()["eval_loss"]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_rows_without_ids_are_named_by_position(kind, whole, model, tmp_path):
    trainer = MAKES[kind](model, tmp_path, mixed=True, ids=False, **METHOD)
    trainer.train()
    assert torch.equal(weights(trainer.model), weights(whole.model))
    np.testing.assert_array_equal(store_of(trainer).read(2, range(ROWS)), store_of(whole).read(2, range(ROWS)))


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(kind, whole, model, tmp_path, step):
    trainer = MAKES[kind](model, tmp_path, mixed=True, ids=True, **METHOD)
    trainer.train(resume_from_checkpoint=str(Path(whole.args.output_dir, f"checkpoint-{step}")))
    assert torch.equal(weights(trainer.model), weights(whole.model))
    for epoch in range(3):
        np.testing.assert_array_equal(
            store_of(trainer).read(epoch, range(ROWS)), store_of(whole).read(epoch, range(ROWS))
        )
    assert logged(trainer, "short_term_loss") == logged(whole, "short_term_loss")


def test_micro_batches_equal_one_big_batch(kind, model, tmp_path):
    """20 rows in steps of 8, 8 and 4, without dropout, and in the same order."""
    ends = []
    for size in (8, 4):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        changes |= {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}  # Adam divides by tiny gradients
        trainer = MAKES[kind](model, tmp_path / str(size), mixed=True, ids=True, **METHOD | changes)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
        ends.append(trainer)
    torch.testing.assert_close(*(weights(trainer.model) for trainer in ends), atol=1e-5, rtol=0)
    assert logged(ends[0], "base_loss") == pytest.approx(logged(ends[1], "base_loss"), abs=1e-5)


def test_a_model_card_and_a_model_are_saved(kind, whole, tmp_path):
    whole.create_model_card(model_name="liked")
    card = Path(whole.args.output_dir, "README.md").read_text()
    assert "liked" in card
    assert "Long Short-Term Sample Distillation" in card
    whole.save_model(str(tmp_path))
    assert list(tmp_path.glob("**/*.safetensors"))


# ---- what is particular to one of them


def test_a_pair_of_scores_is_two_classes(model, tmp_path):
    """Row i is (chosen, rejected) of sample i, and the base loss is the Bradley-Terry loss."""
    changes = {"per_device_train_batch_size": ROWS, "train_sampling_strategy": "random"}
    trainer = make_preference(model, tmp_path / "still", True, True, **METHOD, **changes | {"learning_rate": 0.0})
    trainer.train()
    tokenizer, data = trainer.processing_class, preferences()
    trainer.model.eval()
    with torch.no_grad():
        scores = [
            trainer.model(
                **tokenizer([text + tokenizer.eos_token for text in data[side]], padding=True, return_tensors="pt")
            ).logits
            for side in ("chosen", "rejected")
        ]
    expected = torch.hstack(scores)
    recorded = torch.from_numpy(store_of(trainer).read(2, range(ROWS)))
    torch.testing.assert_close(recorded, expected, atol=1e-5, rtol=0)
    base = -F.logsigmoid(expected[:, 0] - expected[:, 1]).mean().item()
    assert logged(trainer, "base_loss") == pytest.approx([base] * 3, abs=1e-5)
    assert logged(trainer, "accuracy")  # TRL's own log is there too

    moving = make_preference(model, tmp_path / "moving", True, True, **METHOD, **changes)
    moving.train()
    student, teacher = (torch.from_numpy(store_of(moving).read(epoch, range(ROWS))) for epoch in (2, 1))
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    assert logged(moving, "short_term_loss")[-1] == pytest.approx(divergence.item(), rel=1e-4)


def test_one_label_with_a_binary_entropy_is_a_bernoulli_distribution(model, tmp_path):
    changes = {"per_device_train_batch_size": ROWS}
    trainer = make_pair(1)(model, tmp_path, True, True, **METHOD, **changes)
    trainer.train()
    student, teacher = (torch.from_numpy(store_of(trainer).read(epoch, range(ROWS))) for epoch in (2, 1))
    p, q = (torch.hstack([logits, torch.zeros_like(logits)]).log_softmax(-1) for logits in (student, teacher))
    divergence = F.kl_div(p, q, reduction="batchmean", log_target=True)
    assert logged(trainer, "short_term_loss")[-1] == pytest.approx(divergence.item(), rel=1e-3)


def test_pairs_that_are_too_long_are_left_out_and_the_others_keep_their_ids(model, tmp_path):
    scorer, tokenizer = scores_model(model)
    data = add_sample_ids(preferences()).add_column("margin", [0.1] * ROWS)
    lengths = [max(len(tokenizer(row[side])["input_ids"]) for side in ("chosen", "rejected")) for row in data]
    limit = sorted(lengths)[ROWS // 2]  # TRL adds a token to each text
    arguments = PreferenceConfig(str(tmp_path), **COMMON, **METHOD, max_length=limit)
    trainer = PreferenceTrainer(scorer, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    kept = trainer.train_dataset["sample_id"][:]
    assert 0 < len(kept) < ROWS
    assert np.isfinite(store_of(trainer).read(2, kept)).all()
    assert store_of(trainer).num_samples == max(kept) + 1
    assert logged(trainer, "short_term_coverage")[-1] == 1.0


@pytest.mark.parametrize("batch_sampler", ["no_duplicates", "group_by_label"])
def test_samplers_of_sentence_transformers_draw_the_same_batches(model, tmp_path, batch_sampler):
    found = []
    for mixed in (False, True):
        changes = {"batch_sampler": batch_sampler, "per_device_train_batch_size": 4}
        changes |= {**METHOD, **OFF} if mixed else {}
        trainer = make_pair(3)(model, tmp_path / str(mixed), mixed, ids=mixed, **changes)
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.equal(*found)


def test_labels_of_sentence_transformers_may_be_called_score(model, tmp_path):
    set_seed(0)
    data = pairs(1).rename_column("label", "score")
    arguments = PairConfig(str(tmp_path), **COMMON, **METHOD)
    trainer = PairTrainer(cross_encoder.CrossEncoder(model, num_labels=1, device="cpu"), arguments, train_dataset=data)
    trainer.train()
    np.testing.assert_array_equal(np.load(tmp_path / "_logits" / "labels.npy"), data["score"][:])


def test_lists_of_documents_are_refused(model, tmp_path):
    """Their loss runs the model on pieces of a batch; one of them may have as many rows as the batch has samples."""
    texts = [row["sentence1"] for row in pairs(1)]
    lists = [texts[i : i + 2] for i in range(len(texts) - 1)]
    data = datasets.Dataset.from_dict({"query": texts[:-1], "docs": lists, "labels": [[1, 0]] * len(lists)})
    encoder = cross_encoder.CrossEncoder(model, num_labels=1, device="cpu")
    arguments = PairConfig(str(tmp_path), **COMMON, **METHOD)
    trainer = PairTrainer(encoder, arguments, train_dataset=data, loss=cross_encoder.losses.LambdaLoss(encoder))
    with pytest.raises(ValueError, match=r"a list with a tensor for each sample.*Make each pair a sample of its own"):
        trainer.train()


@pytest.mark.parametrize(
    "other", [Seq2SeqTrainer, trl.RewardTrainer, trl.SFTTrainer, cross_encoder.CrossEncoderTrainer]
)
def test_the_wrong_order_is_refused_when_the_class_is_made(other):
    with pytest.raises(TypeError, match=rf"class Wrong\(LSTSDMixin, {other.__name__}\)"):
        type("Wrong", (other, LSTSDMixin), {})


def test_a_checked_config_checks(tmp_path):
    for config_class in (SequenceConfig, PreferenceConfig, PairConfig):
        with pytest.raises(ValueError, match=r"temperature=0 is not allowed"):
            config_class(str(tmp_path), temperature=0, use_cpu=True, bf16=False)


def test_a_plain_config_of_the_other_trainer_will_do(model, tmp_path):
    scorer, tokenizer = scores_model(model)
    arguments = trl.RewardConfig(str(tmp_path), **COMMON | {"num_train_epochs": 4})
    trainer = PreferenceTrainer(scorer, arguments, train_dataset=preferences(), processing_class=tokenizer)
    trainer.train()
    assert logged(trainer, "long_term_coverage")[-1] == 1.0


def test_embeddings_have_no_rows_of_logits(model, tmp_path):
    """A trainer of another kind is refused in its first step, before the update."""

    class EmbeddingTrainer(LSTSDMixin, sentence_transformers.SentenceTransformerTrainer):
        pass

    @dataclass
    class EmbeddingConfig(DistillationArguments, sentence_transformers.SentenceTransformerTrainingArguments):
        pass

    encoder = sentence_transformers.SentenceTransformer(model, device="cpu")
    before = weights(encoder)
    loss = pytest.importorskip("sentence_transformers.sentence_transformer.losses").CoSENTLoss(encoder)
    arguments = EmbeddingConfig(str(tmp_path), **COMMON)
    trainer = EmbeddingTrainer(model=encoder, args=arguments, train_dataset=pairs(1), loss=loss)
    with pytest.raises(ValueError, match="The model returned no logits, but outputs"):
        trainer.train()
    assert torch.equal(before, weights(encoder))


def test_outputs_without_gradient_are_an_error(model, tmp_path):
    class Measured(trl.RewardTrainer):
        """Computes its loss without the model's own forward, and the scores for its metrics without gradient."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            hidden = model.bert(inputs["input_ids"], inputs["attention_mask"]).pooler_output
            chosen, rejected = model.classifier(hidden).squeeze(-1).chunk(2)
            with torch.no_grad():
                outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            loss = -F.logsigmoid(chosen - rejected).mean()
            return (loss, outputs) if return_outputs else loss

    mixed = type("Mixed", (LSTSDMixin, Measured), {})
    scorer, tokenizer = scores_model(model)
    arguments = PreferenceConfig(str(tmp_path), **COMMON, **METHOD)
    trainer = mixed(scorer, arguments, train_dataset=preferences(), processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"Mixed\.compute_loss returns have no gradient"):
        trainer.train()
