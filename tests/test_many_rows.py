"""Tokens, spans and vocabularies: the invariants of the method for samples with any number of rows."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    set_seed,
)

from lstsd_hf import LogitsStore, LSTSDTrainer, add_sample_ids
from many_toys import BERT, KINDS, NO, SPAN_LENGTH, VOCABULARY, K, Pad, data, make
from toys import config, logged, weights


def train(kind: str, folder: Any, rows: Any, trainer_class: Any = LSTSDTrainer, **options: Any) -> Any:
    changes = {"learning_rate": 0.2, "logits_top_k": K, "teacher_trust": "constant", **options.pop("settings", {})}
    collator, resume = options.pop("data_collator", Pad()), options.pop("resume", None)
    trainer = trainer_class(
        make(kind), config(folder, **changes), train_dataset=rows, data_collator=collator, **options
    )
    trainer.train(resume)
    return trainer


@pytest.mark.parametrize("kind", [*KINDS, "gpt2"])
def test_off_is_off(tmp_path, kind):
    """Also for GPT-2, where the plain Trainer counts one token more for each sample than the model predicts."""
    off = {"long_term_weight": 0.0, "short_term_weight": 0.0, "num_train_epochs": 2}
    plain = train(kind, tmp_path / "plain", data(kind), Trainer, settings=off)
    ours = train(kind, tmp_path / "ours", data(kind), settings=off)
    assert torch.equal(weights(plain.model), weights(ours.model))
    assert LogitsStore.open(tmp_path / "ours" / "_logits").sealed_epochs == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["stream", "dispatched"])
def test_one_process_makes_its_own_batches(tmp_path, kind, form):
    """Accelerate would dispatch those of a stream, and cut the rows of a batch as if each sample had one."""
    settings = {"num_samples": 24, "max_steps": 6, "long_term_weight": 0.0, "short_term_weight": 0.0}
    rows = add_sample_ids(data(kind))
    if form == "stream":
        rows = rows.to_iterable_dataset()
    else:
        settings["accelerator_config"] = {"dispatch_batches": True}
    plain = train(kind, tmp_path / "plain", rows, Trainer, settings=settings)
    ours = train(kind, tmp_path / "ours", rows, settings=settings | {"save_strategy": "steps", "save_steps": 2})
    assert torch.equal(weights(plain.model), weights(ours.model))
    assert LogitsStore.open(tmp_path / "ours" / "_logits").sealed_epochs == [0, 1]
    assert (ours.accelerator.dispatch_batches is True) == (form == "dispatched")  # for evaluation
    resumed = train(kind, tmp_path / "ours", rows, settings=settings, resume=str(tmp_path / "ours" / "checkpoint-2"))
    assert torch.equal(weights(resumed.model), weights(ours.model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [32, 30])
def test_accumulated_micro_batches_equal_one_big_batch(tmp_path, kind, count):
    settings = {"num_train_epochs": 3, "mini_generation_epochs": 1, "train_sampling_strategy": "sequential"}
    runs = [
        train(
            kind,
            tmp_path / str(size),
            data(kind, count, length=SPAN_LENGTH.get(kind)),
            settings={
                **settings,
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": 16 // size,
            },
        )
        for size in (16, 4)
    ]
    assert (weights(runs[0].model) - weights(make(kind))).abs().max() > 0.01
    torch.testing.assert_close(weights(runs[1].model), weights(runs[0].model), atol=1e-5, rtol=0)
    for name in ("loss", "base_loss", "long_term_loss", "short_term_loss"):
        assert logged(runs[1], name) == pytest.approx(logged(runs[0], name), abs=1e-5), name


def predicted(outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and labels of the predicted tokens: shifted for a language model, which has more than 4 classes."""
    logits = outputs["logits"]
    if logits.shape[-1] > 4:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits.flatten(0, 1), labels.flatten()


def mean_over_tokens(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(*predicted(outputs, labels), ignore_index=NO)


def sum_over_count(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(*predicted(outputs, labels), ignore_index=NO, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("kind", ["tokens", "vocabulary"])
@pytest.mark.parametrize("loss", ["smoothing", mean_over_tokens, sum_over_count])
def test_other_losses_accumulate_to_that_of_one_big_batch(tmp_path, kind, loss):
    """22 samples: the last step has 6, in 1 or 3 micro-batches. A loss equal to the model's changes nothing."""
    settings = {"num_train_epochs": 3, "mini_generation_epochs": 1, "train_sampling_strategy": "sequential"}
    settings |= {"label_smoothing_factor": 0.1} if loss == "smoothing" else {}
    options = {} if loss == "smoothing" else {"compute_loss_func": loss}
    runs = [
        train(
            kind,
            tmp_path / str(size),
            data(kind, 22),
            settings=settings | {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size},
            **options,
        )
        for size in (8, 2)
    ]
    torch.testing.assert_close(weights(runs[1].model), weights(runs[0].model), atol=1e-5, rtol=0)
    for name in ("loss", "base_loss", "short_term_loss"):
        assert logged(runs[1], name) == pytest.approx(logged(runs[0], name), abs=1e-5), name
    settings |= {"per_device_train_batch_size": 8, "label_smoothing_factor": 0.0}
    plain = train(kind, tmp_path / "plain", data(kind, 22), settings=settings)
    is_same = torch.allclose(weights(plain.model), weights(runs[0].model), atol=1e-5)
    assert is_same == (loss != "smoothing")


def past_of(kind: str, logits: Any, row: dict[str, Any]) -> list[list[float]]:
    """A sample's rows of logits, from the model's outputs for that sample alone."""
    if kind == "spans":
        return torch.stack([logits.start_logits[0], logits.end_logits[0]], dim=1).tolist()
    rows = logits.logits[0]
    if kind == "tokens":
        return [values for values, label in zip(rows.tolist(), row["labels"], strict=True) if label != NO]
    return rows[:-1].tolist()


def items_of(kind: str, rows: torch.Tensor) -> list[torch.Tensor]:
    """The distributions of a sample's items, as log probabilities; a feature has two, start and end."""
    return list(rows.log_softmax(0).T) if kind == "spans" else list(rows.log_softmax(1))


def slow_divergence(kind: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The sum over the items of a sample; for spans, the mean of start and end."""
    total = torch.zeros(())
    for log_p, log_q in zip(items_of(kind, student), items_of(kind, teacher), strict=True):
        if kind == "vocabulary":  # the K largest of the teacher, and the rest
            named = log_q.topk(K).indices
            rest = torch.ones(VOCABULARY, dtype=torch.bool)
            rest[named] = False
            log_p, log_q = (torch.cat([x[named], x[rest].logsumexp(0)[None]]) for x in (log_p, log_q))
        total = total + (log_q.exp() * (log_q - log_p)).sum()
    return total / 2 if kind == "spans" else total


def slow_base(kind: str, outputs: Any, row: dict[str, Any]) -> torch.Tensor:
    if kind == "spans":
        pairs = ((outputs.start_logits, row["start_positions"]), (outputs.end_logits, row["end_positions"]))
        return sum(F.cross_entropy(logits, torch.tensor([place])) for logits, place in pairs) / 2
    logits, labels = outputs.logits[0], torch.tensor(row["labels"])
    if kind == "vocabulary":
        logits, labels = logits[:-1], labels[1:]
    return F.cross_entropy(logits, labels, ignore_index=NO, reduction="sum")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_what_the_formulas_say(tmp_path, kind):
    """Compares with a slow reference: sample by sample, without padding, over a dictionary of past logits."""
    rows, epochs, k, rate = data(kind, 10, length=SPAN_LENGTH.get(kind)), 4, 2, 0.1
    settings = {
        "num_train_epochs": epochs,
        "mini_generation_epochs": k,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "learning_rate": rate,
        "long_term_weight": 0.3,
        "short_term_weight": 0.4,
    }
    trainer = train(kind, tmp_path, rows, settings=settings)

    model = make(kind).train()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    past: dict[int, dict[int, torch.Tensor]] = {}
    expected = []
    for epoch in range(epochs):
        past[epoch] = {}
        teachers = [((epoch // k) * k - 1, 0.3), (epoch - 1, 0.4)]
        for start in range(0, 10, 4):
            total, items = torch.zeros(()), 0
            parts = []
            for i in range(start, min(start + 4, 10)):
                outputs = model(input_ids=torch.tensor([rows[i]["input_ids"]]))
                own = torch.tensor(past_of(kind, outputs, rows[i]))
                count = 1 if kind == "spans" else len(own)
                if kind == "spans":
                    live = torch.stack([outputs.start_logits[0], outputs.end_logits[0]], dim=1)
                elif kind == "tokens":
                    live = outputs.logits[0][torch.tensor(rows[i]["labels"]) != NO]
                else:
                    live = outputs.logits[0][:-1]
                loss, left = torch.zeros(()), 1.0
                for source, weight in teachers:
                    if source >= 0:
                        loss = loss + weight * slow_divergence(kind, live, past[source][i])
                        left -= weight
                parts.append((left, slow_base(kind, outputs, rows[i]), loss))
                items += count
                past[epoch][i] = own
            for left, base, loss in parts:
                total = total + (left * base + loss) / items
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            expected.append(total.item())
    assert logged(trainer, "loss") == pytest.approx(expected, abs=2e-5)
    torch.testing.assert_close(weights(trainer.model), weights(model), atol=2e-5, rtol=0)
    assert min(logged(trainer, "long_term_loss")[-3:]) > 1e-4  # the teachers had an effect


def row_labels(store: LogitsStore) -> npt.NDArray[np.int32]:
    found = store.read_row_labels()
    assert found is not None
    return found.labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("collator", [Pad("left"), Pad("right", 16)], ids=["left", "longer"])
def test_other_padding_changes_no_row(tmp_path, kind, collator):
    settings = {"learning_rate": 0.0, "num_train_epochs": 2}
    stores = []
    for name, pad in (("base", Pad()), ("other", collator)):
        train(kind, tmp_path / name, data(kind), data_collator=pad, settings=settings)
        stores.append(LogitsStore.open(tmp_path / name / "_logits"))
    assert np.array_equal(*(store.epoch_parts(1)["offsets"] for store in stores))
    if kind != "spans":  # whose labels are positions in the padded row
        assert np.array_equal(*(row_labels(store) for store in stores))
    if collator.side == "left":  # positions shift with the padding, so the logits are others
        return
    for part, rows in stores[0].epoch_parts(1).items():
        np.testing.assert_allclose(rows, stores[1].epoch_parts(1)[part], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_interrupted_ends_with_the_same_files(tmp_path, kind):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                control.should_save = control.should_training_stop = True

    settings = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "logits_dtype": "float16"}
    whole = train(kind, tmp_path / "whole", data(kind), settings=settings)
    train(kind, tmp_path / "cut", data(kind), settings=settings, callbacks=[Stop()])
    again = LSTSDTrainer(
        make(kind),
        config(tmp_path / "cut", learning_rate=0.2, logits_top_k=K, teacher_trust="constant", **settings),
        train_dataset=data(kind),
        data_collator=Pad(),
    )
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again.model), weights(whole.model))
    files = sorted(path.name for path in (tmp_path / "whole" / "_logits").glob("*.npy"))
    assert any("offsets" in name for name in files)
    for name in files:
        both = [(tmp_path / run / "_logits" / name).read_bytes() for run in ("whole", "cut")]
        assert both[0] == both[1], name


KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from test_many_rows import train
from many_toys import data

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

train("vocabulary", sys.argv[1], data("vocabulary"), settings=eval(sys.argv[2]), callbacks=[Kill()])
"""


def test_a_run_that_is_killed_ends_with_the_same_files(tmp_path):
    """SIGKILL comes after step 8, in the middle of epoch 2; the last checkpoint is from step 7."""
    settings = {"per_device_train_batch_size": 8, "logits_dtype": "float16", "num_train_epochs": 4}
    settings |= {"save_strategy": "steps", "save_steps": 7}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), repr(settings)]
    killed = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    whole = train("vocabulary", tmp_path / "whole", data("vocabulary"), settings=settings)
    again = train("vocabulary", tmp_path / "cut", data("vocabulary"), settings=settings, resume=True)
    assert torch.equal(weights(again.model), weights(whole.model))
    files = [
        {path.name: path.read_bytes() for path in tmp_path.glob(f"{run}/_logits/*.npy")} for run in ("whole", "cut")
    ]
    assert files[0] == files[1]
    assert {"labels.npy", "labels.offsets.npy", "epoch-0003.classes.npy"} <= files[0].keys()


def test_a_sample_whose_rows_change_has_no_teacher(tmp_path):
    """One sample loses a label from epoch 1 on; the others keep their teachers."""
    rows = add_sample_ids(data("tokens", 8))
    seen = {"epoch": 0}

    def cut(features):
        batch = Pad()(features)
        if seen["epoch"] > 0:
            batch["labels"][0, 1] = NO
        return batch

    class Watch(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            seen["epoch"] += 1

    settings = {"num_train_epochs": 2, "train_sampling_strategy": "sequential"}
    trainer = train("tokens", tmp_path, rows, settings=settings, data_collator=cut, callbacks=[Watch()])
    lengths = [len(tokens) - 1 for tokens in rows["input_ids"]]
    expected = sum(lengths[1:]) / (sum(lengths) - 1)
    assert logged(trainer, "short_term_coverage")[-1] == pytest.approx(expected)


def test_a_padding_free_batch_trains_the_same_rows(tmp_path):
    settings = {"learning_rate": 0.0, "num_train_epochs": 2, "remove_unused_columns": True}
    train("vocabulary", tmp_path / "padded", data("vocabulary"), settings=settings)
    flat = DataCollatorWithFlattening(return_tensors="pt")
    train("vocabulary", tmp_path / "flat", data("vocabulary"), settings=settings, data_collator=flat)
    stores = [LogitsStore.open(tmp_path / name / "_logits") for name in ("padded", "flat")]
    assert np.array_equal(*(store.epoch_parts(1)["offsets"] for store in stores))
    assert np.array_equal(*(row_labels(store) for store in stores))


def test_a_mask_that_is_drawn_anew_is_refused(tmp_path):
    class Tokenizer:
        mask_token, mask_token_id, pad_token, pad_token_id = "[MASK]", 1, "[PAD]", 0

    collator = DataCollatorForLanguageModeling.__new__(DataCollatorForLanguageModeling)
    collator.mlm = True
    trainer = LSTSDTrainer(
        BertForMaskedLM(BertConfig(**BERT)), config(tmp_path), train_dataset=data("vocabulary"), data_collator=collator
    )
    with pytest.raises(ValueError, match=r"draws another mask in each epoch.*Mask the data set once"):
        trainer.train()


def test_a_mask_that_stays_is_learnt_from(tmp_path):
    set_seed(0)
    trainer = LSTSDTrainer(
        BertForMaskedLM(BertConfig(**BERT)),
        config(tmp_path, logits_top_k=K),
        train_dataset=data("vocabulary"),
        data_collator=Pad(),
    )
    trainer.train()
    assert logged(trainer, "long_term_loss")[-1] > 0


@pytest.mark.parametrize(
    ("kind", "settings", "collator", "message"),
    [
        ("vocabulary", {"logits_top_k": VOCABULARY}, Pad(), "logits_top_k=40 and a vocabulary of 40"),
        ("tokens", {}, lambda f: {"input_ids": Pad()(f)["input_ids"]}, "expected labels of shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, kind, settings, collator, message):
    with pytest.raises(ValueError, match=message):
        train(kind, tmp_path, data(kind), settings=settings, data_collator=collator)


def labels_of(kind: str, row: dict[str, Any]) -> list[int]:
    if kind == "tokens":
        return [label for label in row["labels"] if label != NO]
    if kind == "spans":
        ends = row["start_positions"], row["end_positions"]
        return [(ends[0] == i) + 2 * (ends[1] == i) for i in range(len(row["input_ids"]))]
    return row["labels"][1:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_label_of_each_row_is_in_the_store(tmp_path, kind, side):
    rows = data(kind)
    train(kind, tmp_path, rows, data_collator=Pad(side), settings={"num_train_epochs": 2})
    store = LogitsStore.open(tmp_path / "_logits")
    expected = [labels_of(kind, row) for row in rows]
    found = store.read_row_labels()
    assert np.array_equal(found.offsets, store.epoch_parts(1)["offsets"])
    assert found.labels.tolist() == [label for part in expected for label in part]
    store.verify()


def test_of_padding_free_and_of_shifted_labels(tmp_path):
    rows = data("vocabulary")
    expected = [label for row in rows for label in labels_of("vocabulary", row)]

    def shifted(features):
        batch = Pad()(features)
        labels = batch.pop("labels")
        return batch | {"shift_labels": F.pad(labels[:, 1:], (0, 1), value=NO), "labels": labels}

    for name, collator in (("flat", DataCollatorWithFlattening(return_tensors="pt")), ("shifted", shifted)):
        train("vocabulary", tmp_path / name, rows, data_collator=collator, settings={"num_train_epochs": 1})
        assert LogitsStore.open(tmp_path / name / "_logits").read_row_labels().labels.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_change_are_told_of_once(tmp_path, kind):
    """One sample of each batch loses a row from epoch 1 on, and the next from epoch 2 on: only epoch 1 warns."""
    rows, seen = add_sample_ids(data(kind, 12, length=6)), {"epoch": 0}

    def cut(features):
        batch = Pad()(features)
        where = "labels" if "labels" in batch else "attention_mask"
        for sample in range(min(seen["epoch"], 2)):
            batch[where][2 + sample, -1] = NO if where == "labels" else 0
        return batch

    class Watch(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            seen["epoch"] += 1

    settings = {"num_train_epochs": 4, "train_sampling_strategy": "sequential"}
    with pytest.warns(UserWarning, match="another number of rows") as caught:
        train(kind, tmp_path, rows, settings=settings, data_collator=cut, callbacks=[Watch()])
    (message,) = [str(warning.message) for warning in caught if "another number of rows" in str(warning.message)]
    assert "In epoch 1 2 of 12 samples" in message  # one in each of two batches
    assert "first sample ids [2, 10]" in message
