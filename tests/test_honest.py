"""Trust by honesty: the teacher without its memory, the gate, and runs checked against a plain reference."""

import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer

from lstsd_hf import LogitsStore, LSTSDTrainer, add_sample_ids
from lstsd_hf.method.heads import Classes
from lstsd_hf.method.honest import (
    Honest,
    LabelShares,
    Said,
    Witness,
    label_doubt,
    label_evidence,
    said,
    smoothed,
    smoothing_after,
    with_gate,
    witness,
)
from lstsd_hf.method.loss import distillation_loss
from toys import config, logged, rows, tiny_bert, weights


def data(count: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know the label of about 70% of the samples, and the labels. One row is NaN, one label no class."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = rng.normal(0, 0.3, (count, classes))
    knows = rng.random(count) < 0.7
    logits[np.arange(count)[knows], labels[knows]] += rng.gamma(2, 0.5, knows.sum())
    logits[3], labels[7] = np.nan, -100
    return logits.astype(np.float16), labels


def log_sum(values: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in values))


def slow_witness(rows: list[list[float]], labels: list[int], honest: float) -> tuple[float, list[float], float]:
    """The formulas of `witness`, sample by sample: scale, shift and lowered."""
    classes = len(rows[0])
    known = [label for label in labels if 0 <= label < classes]
    shares = [known.count(c) / len(known) for c in range(classes)]
    pairs = [
        (row, label)
        for row, label in zip(rows, labels, strict=True)
        if all(map(math.isfinite, row)) and 0 <= label < classes
    ]
    centred = [[value - sum(row) / classes for value in row] for row, _ in pairs]
    mean = [sum(row[c] for row in centred) / len(pairs) for c in range(classes)]
    squares = [(row[c] - mean[c]) ** 2 for row in centred for c in range(classes)]
    scale = 0.7 / math.sqrt(sum(squares) / len(squares))
    shift = [math.log(max(shares[c], 1e-3)) - scale * mean[c] for c in range(classes)]
    z = [[scale * row[c] + shift[c] for c in range(classes)] for row, _ in pairs]
    ahead = [
        row[label] - max(value for c, value in enumerate(row) if c != label)
        for row, (_, label) in zip(z, pairs, strict=True)
    ]
    honest = max(honest, sum(share**2 for share in shares))
    return scale, shift, max(float(np.quantile(ahead, 1 - honest)), 0.0)


@pytest.mark.parametrize("honest", [0.2, 0.5, 0.65, 0.99])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_witness_is_what_the_formulas_say(honest: float, classes: int) -> None:
    logits, labels = data(classes=classes)
    found = witness(logits, labels, LabelShares.of(labels, classes), honest)
    scale, shift, lowered = slow_witness(logits.astype(float).tolist(), labels.tolist(), honest)
    assert found is not None
    assert found.scale == pytest.approx(scale, rel=1e-5)
    assert found.shift == pytest.approx(shift, rel=1e-5)
    assert found.lowered == pytest.approx(lowered, rel=1e-4, abs=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = data()
    priors = LabelShares.of(labels, 3)
    whole = witness(logits, labels, priors, 0.6)
    monkeypatch.setattr("lstsd_hf.method.honest._VALUES_AT_ONCE", 21)
    parts = witness(logits, labels, priors, 0.6)
    assert whole is not None
    assert parts is not None
    assert parts.scale == pytest.approx(whole.scale, rel=1e-12)
    assert parts.shift == pytest.approx(whole.shift, rel=1e-12)
    assert parts.lowered == pytest.approx(whole.lowered, rel=1e-12)


def test_an_epoch_without_predictions_is_no_witness() -> None:
    labels = np.array([0, 1, 2])
    assert witness(np.full((3, 3), np.nan, np.float16), labels, LabelShares.of(labels, 3), 0.5) is None


def test_without_its_memory_a_teacher_agrees_with_labels_as_often_as_honest_predictions() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 2000)
    logits = rng.normal(0, 1, (2000, 3)) + 3 * np.eye(3)[labels]  # the model knows nearly all labels by heart
    found = witness(logits, labels, LabelShares.of(labels, 3), honest=0.45)
    assert found is not None
    corrections = Honest.of([found], 0.0, torch.device("cpu"))
    log_target, there = corrections.log_target(torch.tensor(logits)[None], torch.from_numpy(labels))
    assert (logits.argmax(1) == labels).mean() > 0.9
    assert (log_target.argmax(1).numpy() == labels).mean() == pytest.approx(0.45, abs=0.002)
    assert there.min() == 1


def test_the_target_is_the_mean_of_the_teachers_that_are_there() -> None:
    rng = np.random.default_rng(2)
    past = torch.tensor(rng.normal(0, 1, (2, 4, 3)), dtype=torch.float32)
    past[0, 1], past[:, 2] = torch.nan, torch.nan
    labels = [0, 2, 1, -100]
    witnesses = [Witness(0.5, np.array([0.1, 0.2, 0.3]), 0.7), Witness(0.9, np.array([-0.1, 0.0, 0.4]), 0.0)]
    found, there = Honest.of(witnesses, 1.5, torch.device("cpu")).log_target(past, torch.tensor(labels))
    for i, label in enumerate(labels):
        z = []
        for k, w in enumerate(witnesses):
            row = past[k, i].tolist()
            if not any(map(math.isnan, row)):
                z.append([w.scale * row[c] + w.shift[c] - (w.lowered if c == label else 0.0) for c in range(3)])
        assert there[i] == (len(z) > 0)
        if z:
            mean = [2 * sum(row[c] for row in z) / len(z) + 1.5 * (c == label) for c in range(3)]
            assert found[i].tolist() == pytest.approx([value - log_sum(mean) for value in mean], abs=1e-5)


def test_the_loss_goes_from_the_teachers_to_the_honest_past_as_the_gate_opens() -> None:
    torch.manual_seed(0)
    student, past, labels = torch.randn(5, 3), torch.randn(2, 5, 3), torch.tensor([0, 1, 2, 0, 1])
    base = torch.nn.functional.cross_entropy(student, labels)
    ordinary = Classes().terms(student, past, 1.0, "confidence")
    witnesses = [Witness(0.5, np.zeros(3), 0.3), Witness(0.9, np.zeros(3), 0.1)]
    corrections = Honest.of(witnesses, 1.0, torch.device("cpu"))
    honest = corrections.terms(student, past, labels)
    target = corrections.log_target(past, labels)[0].exp()
    both = type(ordinary)(*(torch.cat(pair) for pair in zip(ordinary, honest, strict=True)))
    weights = torch.tensor([0.4, 0.3])
    log_p = student.log_softmax(1)
    relabelled = (target * (target.log() - log_p)).sum(1).mean()
    for gate in (0.0, 0.3, 1.0):
        expected = (1 - gate) * distillation_loss(base, weights, ordinary) + gate * relabelled
        assert distillation_loss(base, with_gate(weights, gate), both) == pytest.approx(expected.item(), abs=1e-6)


def test_a_label_says_the_less_the_more_are_wrong() -> None:
    """By Bayes' rule: if the past finds all classes equal, a label's probability is the share of right labels."""
    for wrong, classes in ((0.2, 2), (0.2, 6), (0.4, 3)):
        past = Honest.of([Witness(1.0, np.zeros(classes), 0.0)], label_evidence(wrong, classes), torch.device("cpu"))
        found, _ = past.log_target(torch.zeros(1, 1, classes), torch.tensor([1]))
        assert found[0, 1].exp().item() == pytest.approx(1 - wrong)
    assert label_evidence(0.9, 2) == label_evidence(0.5, 2) == 0  # a label never speaks against its own class
    assert label_evidence(0.0, 2) == pytest.approx(math.log(999))


@pytest.mark.parametrize(("against", "expected"), [(0.0, 0.0), (0.05, 0.0), (0.1, 0.97), (0.11, 1.0), (0.4, 1.0)])
def test_labels_are_doubted_by_what_the_surest_predictions_say(against: float, expected: float) -> None:
    """Of 1,000 predictions only the surest 200 count; all others contradict their labels."""
    logits, labels = np.zeros((1000, 2)), np.zeros(1000, np.int64)
    logits[:200, 0], logits[200:, 1] = 4.0, 1.0
    labels[: round(200 * against)] = 1
    found = said(logits, labels).contradicted
    assert found == pytest.approx(against)
    assert label_doubt(found, 1000) == pytest.approx(expected, abs=0.005)
    assert label_doubt(found, 10**9) == pytest.approx(min(max((against - 0.04) / 0.04, 0), 1), abs=1e-3)


def test_a_model_that_knows_one_class_alone_doubts_no_label() -> None:
    logits, labels = np.tile([1.0, 0.0, 0.0], (1000, 1)), np.arange(1000) % 3
    found = said(logits, labels)
    assert math.isnan(found.contradicted)
    assert label_doubt(found.contradicted, 1000) == 0


@pytest.mark.parametrize(("learnt", "doubts"), [(5, False), (6, True), (10, True)])
def test_labels_are_doubted_only_by_a_model_that_knows_most_classes(learnt: int, doubts: bool) -> None:
    """The model has learnt some of 10 classes; a fifth of all labels are wrong."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 5000)
    labels = np.where(rng.random(5000) < 0.2, (true + rng.integers(1, 10, 5000)) % 10, true)
    logits = np.eye(10)[np.where(true < learnt, true, 0)] * np.where(true < learnt, 8.0, 6.0)[:, None]
    found = said(logits, labels)
    assert found.wrong == pytest.approx(0.2 if doubts else np.nan, abs=0.05, nan_ok=True)
    assert bool(label_doubt(found.contradicted, 5000)) == doubts


def test_no_prediction_says_nothing_of_the_labels() -> None:
    assert said(np.full((3, 2), np.nan), np.array([0, 1, 0])) == Said(0, 0, 0)


@pytest.mark.parametrize(
    ("before", "claimed", "honest", "expected"),
    [
        (0.0, 0.9, 0.8, 0.2),  # 0.1 too much, and full smoothing takes off 0.5
        (0.1, 0.9, 0.8, 0.3),  # what is still too much is added
        (0.3, 0.7, 0.8, 0.1),  # too little: the smoothing decreases
        (0.1, 0.6, 0.8, 0.0),
        (0.3, 0.99, 0.8, 0.4),  # the limit: a model that knows labels of this smoothing by heart claims 0.8
        (0.0, 0.9, 0.3, 0.8),  # an accuracy below chance counts as chance
    ],
)
def test_labels_are_smoothed_by_what_the_model_claims_too_much(
    before: float, claimed: float, honest: float, expected: float
) -> None:
    assert smoothing_after(before, claimed, honest, classes=2) == pytest.approx(expected)


def test_a_class_whose_probability_is_0_is_ruled_out() -> None:
    logits, labels = data(500)
    assert not said(logits, labels).rules_out
    logits[9, 1] = -1e4
    assert said(logits, labels).rules_out
    logits[9] = np.nan
    assert not said(logits, labels).rules_out


def test_what_a_model_claims_is_its_mean_probability() -> None:
    logits, labels = data(500)
    known = [i for i in range(500) if i not in (3, 7)]
    top = [math.exp(max(log_p_of(row))) for row in logits[known].astype(float)]
    assert said(logits, labels).claimed == pytest.approx(sum(top) / len(top), rel=1e-6)


def test_smoothed_labels_are_those_of_label_smoothing() -> None:
    logits, labels = (torch.from_numpy(part) for part in data())
    student, known = logits.float().nan_to_num(0.0).requires_grad_(), (labels >= 0)
    loss = smoothed(torch.nn.functional.cross_entropy(student, labels), student, labels, 0.3)
    expected = torch.nn.functional.cross_entropy(student[known], labels[known], label_smoothing=0.3)
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, student)
    assert found[7].abs().sum() == 0, "it has no label"


# ---- runs

EPOCHS, STEPS = 6, 12


def noise(head: str = "classes") -> datasets.Dataset:
    """96 rows. Labels of classes are random, so that a model can only memorise them."""
    data = rows(96, head)
    if head != "classes":
        return data
    return data.remove_columns("label").add_column("label", np.random.default_rng(0).integers(0, 3, 96))


class Watched(LSTSDTrainer):
    """Notes the sample ids of each step."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append(inputs["lstsd_sample_ids"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def run(folder: Path, resumes: Any = None, callbacks: Any = None, data: Any = None, **changes: Any) -> Any:
    settings = {"teacher_trust": "honest", "num_train_epochs": EPOCHS, "optim": "adamw_torch", "learning_rate": 3e-3}
    head = changes.pop("head", "classes")
    trainer = Watched(
        tiny_bert(head, dropout=changes.pop("dropout", 0.0)),
        config(folder, **settings | changes),
        train_dataset=add_sample_ids(noise(head)) if data is None else data,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resumes)
    return trainer


def gates(trainer: Any) -> list[float]:
    """The gate of each epoch."""
    return logged(trainer, "honest_gate")[: EPOCHS * STEPS : STEPS]


def smoothings(trainer: Any) -> list[float]:
    """The label smoothing of each epoch."""
    return logged(trainer, "honest_smoothing")[: EPOCHS * STEPS : STEPS]


@pytest.mark.parametrize(("k", "long_term", "short_term"), [(2, 0.4, 0.4), (3, 0.5, 0.0), (1, 0.0, 0.7)])
def test_every_step_has_the_loss_of_the_formulas(tmp_path: Path, k: int, long_term: float, short_term: float) -> None:
    """The reference uses the sealed files, the measures in the log and the order of the samples."""
    changes = {"mini_generation_epochs": k, "long_term_weight": long_term, "short_term_weight": short_term}
    trainer = run(tmp_path, **changes)
    store, labels = LogitsStore.open(tmp_path / "_logits"), trainer.train_dataset["label"]
    logits = [store.read(epoch, range(96)).astype(float) for epoch in range(EPOCHS)]
    honest = logged(trainer, "honest_accuracy")
    losses, found_gates, against = logged(trainer, "loss"), gates(trainer), {}
    wrongs: dict[int, float] = {}
    gate = smoothing = 0.0
    for epoch in range(EPOCHS):
        teachers = {"long": epoch // k * k - 1, "short": epoch - 1}
        weight = {"long": long_term, "short": short_term}
        teaching = [(weight[name], e) for name, e in teachers.items() if e >= 0 and weight[name]]
        for e in sorted({e for _, e in teaching if e >= 1} - against.keys()):
            against[e], wrongs[e] = slow_contradicted(logits[e].tolist(), labels)
            if e >= 2:
                smoothing = slow_smoothing(smoothing, logits[e], honest[e])
                if not math.isnan(against[e]):
                    surely = against[e] - math.sqrt(against[e] * (1 - against[e]) / 19)  # the surest fifth of 96 is 19
                    gate = max(gate, min(max((surely - 0.04) / 0.04, 0), 1))
        assert found_gates[epoch] == pytest.approx(gate, abs=1e-6)
        assert smoothings(trainer)[epoch] == pytest.approx(smoothing, abs=1e-6)
        counted = [share for _, share in sorted(wrongs.items()) if not math.isnan(share)][:2] or [0.5]
        wrong = min(max(math.prod(counted) ** (1 / len(counted)), 1e-3), 2 / 3)
        evidence = math.log((1 - wrong) * 2 / wrong)
        corrections = {e: slow_witness(logits[e].tolist(), labels, honest[e]) for _, e in teaching}
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            ids = trainer.seen[step]
            label_loss = 0.0
            for i in ids:
                log_p = log_p_of(logits[epoch][i])
                label_loss += ((1 - smoothing) * -log_p[labels[i]] + smoothing * -sum(log_p) / 3) / len(ids)
            parts = [
                slow_loss(logits, epoch, i, labels[i], label_loss, teaching, corrections, gate, evidence) for i in ids
            ]
            assert losses[step] == pytest.approx(sum(parts) / len(ids), abs=2e-5), step
    assert max(found_gates) > 0.3
    assert smoothing > 0.1


def slow_smoothing(before: float, logits: np.ndarray, honest: float) -> float:
    """The label smoothing after an epoch with these logits of three classes; `before` is that of the epoch."""
    honest = min(max(honest, 1 / 3), 1)
    claimed = sum(math.exp(max(log_p_of(row))) for row in logits) / len(logits)
    return min(max(before + (claimed - honest) * 1.5, 0), (1 - honest) * 1.5)


def slow_contradicted(logits: list[list[float]], labels: list[int]) -> tuple[float, float]:
    """The share of the surest fifth of the predictions that contradicts the label, among classes the model knows; and
    the share of labels that are wrong by this."""
    predicted = [row.index(max(row)) for row in logits]
    known = [i for i, label in enumerate(labels) if predicted.count(label) >= max(labels.count(label) / 10, 1)]
    sure = sorted((-max(log_p_of(np.array(logits[i]))), predicted[i] != labels[i]) for i in known)
    sure = sure[: round(len(known) / 5)]
    reach = (len({labels[i] for i in known}) - 1) / (len(set(labels)) - 1)
    if reach < 0.5 or statistics.median(math.exp(-log_p) for log_p, _ in sure) <= 0.5:
        return math.nan, math.nan
    against = sum(against for _, against in sure) / len(sure)
    return against, against / (against + (1 - against) * reach)


def log_p_of(logits: np.ndarray) -> list[float]:
    return [value - log_sum(logits.tolist()) for value in logits.tolist()]


def slow_loss(
    logits: list[np.ndarray],
    epoch: int,
    i: int,
    label: int,
    label_loss: float,
    teaching: list[tuple[float, int]],
    corrections: dict[int, Any],
    gate: float,
    evidence: float,
) -> float:
    """What a sample adds to the loss of its batch, by the formulas of `method.honest`."""
    if not teaching:
        return label_loss
    log_p, ordinary, z = log_p_of(logits[epoch][i]), label_loss, [evidence * (c == label) for c in range(3)]
    for weight, e in teaching:
        log_q = log_p_of(logits[e][i])
        trust = 1 + sum(math.exp(value) * value for value in log_q) / math.log(3)
        ordinary += weight * trust * (kl(log_q, log_p) - label_loss)
        scale, shift, lowered = corrections[e]
        for c in range(3):
            z[c] += 2 / len(teaching) * (scale * logits[e][i][c] + shift[c] - (lowered if c == label else 0))
    honest_past = kl([value - log_sum(z) for value in z], log_p)
    return (1 - gate) * ordinary + gate * honest_past


def kl(log_q: list[float], log_p: list[float]) -> float:
    return sum(math.exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True))


def test_it_is_the_default_where_it_has_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstsd_hf.training.honesty.SINCE_STEP", 2 * STEPS)
    ours = run(tmp_path / "default", teacher_trust=None)
    asked = run(tmp_path / "asked")
    assert ours.settings.teacher_trust == "honest"
    assert gates(ours) == gates(asked)
    assert torch.equal(weights(ours.model), weights(asked.model))


def test_rows_of_the_store_without_a_sample_do_not_make_the_doubt_surer(tmp_path: Path) -> None:
    """The first token is the class; an eighth of the labels are wrong, so that the gate opens in part."""
    tokens, given = np.ones((120, 8), int), np.random.default_rng(1).integers(0, 3, 120)
    tokens[:, 0] = 1 + given
    given[::8] = (given[::8] + 1) % 3
    found = []
    for gap in (1, 3):  # with a gap of 3 the store has three rows for each sample
        data = datasets.Dataset.from_dict({"input_ids": tokens.tolist(), "label": given.tolist()})
        data = data.add_column("sample_id", (gap * np.arange(120)).tolist())
        trainer = run(tmp_path / str(gap), data=data, num_train_epochs=4, optim="sgd", learning_rate=5e-2)
        found.append((logged(trainer, "honest_gate"), logged(trainer, "honest_smoothing")))
    assert found[0] == found[1]
    assert 0 < found[0][0][-1] < 1


def test_by_default_labels_are_not_doubted_after_few_steps(tmp_path: Path) -> None:
    """Six epochs of 12 steps are 72, fewer than SINCE_STEP."""
    ours = run(tmp_path / "default", teacher_trust=None)
    asked = run(tmp_path / "asked", teacher_trust="confidence")
    assert ours.settings.teacher_trust == "honest"
    assert max(gates(ours)) == 0
    assert torch.equal(weights(ours.model), weights(asked.model))


@pytest.mark.parametrize(
    "changes",
    [{"head": "multi_label"}, {"head": "regression"}, {"train_sampling_strategy": "sequential"}],
    ids=["multi_label", "regression", "sequential"],
)
def test_by_default_trust_is_by_confidence_where_it_has_none(tmp_path: Path, changes: Any) -> None:
    ours = run(tmp_path / "default", teacher_trust=None, num_train_epochs=3, **changes)
    asked = run(tmp_path / "asked", teacher_trust="confidence", num_train_epochs=3, **changes)
    assert ours.settings.teacher_trust == "confidence"
    assert not logged(ours, "honest_gate")
    assert torch.equal(weights(ours.model), weights(asked.model))


def test_while_no_label_looks_wrong_it_is_trust_by_confidence_that_claims_less(tmp_path: Path) -> None:
    """96 rows whose label the first token decides."""
    ours, asked = (run(tmp_path / trust, data=rows(96), teacher_trust=trust) for trust in ("honest", "confidence"))
    assert max(gates(ours)) == 0
    assert smoothings(ours)[3] == 0 < smoothings(ours)[5]
    alike = 4 * STEPS
    assert logged(ours, "loss")[:alike] == logged(asked, "loss")[:alike], "bit for bit until labels are smoothed"
    claimed = [
        said(LogitsStore.open(tmp_path / trust / "_logits").epoch_rows(5), np.arange(96) % 3).claimed
        for trust in ("honest", "confidence")
    ]
    assert claimed[0] < claimed[1] - 0.02


class OneOfTwo(torch.nn.Module):
    """A model whose samples have two candidates among the classes; the third gets a large negative number."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.bert = tiny_bert(dropout=0.0)
        self.mask = mask

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        others = (labels + 1 + input_ids[:, 1] % 2) % 3
        logits = logits.scatter(1, others[:, None], self.mask)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("mask", [-1e4, torch.finfo(torch.float32).min])
def test_where_classes_are_ruled_out_it_ends(tmp_path: Path, mask: float) -> None:
    """There a mask would give the logits their spread, and smoothed labels a loss without bound."""
    found = []
    for trust in ("honest", "confidence"):
        settings = {"teacher_trust": trust, "num_train_epochs": EPOCHS, "optim": "adamw_torch", "learning_rate": 3e-3}
        trainer = LSTSDTrainer(OneOfTwo(mask), config(tmp_path / trust, **settings), train_dataset=noise())
        trainer.train()
        found.append(trainer)
    assert max(gates(found[0])) == max(smoothings(found[0])) == 0
    assert logged(found[0], "loss") == logged(found[1], "loss")
    assert max(logged(found[0], "loss")) < 2
    assert torch.equal(weights(found[0].model), weights(found[1].model))


def test_with_weights_of_0_it_is_the_plain_trainer(tmp_path: Path) -> None:
    ours = run(tmp_path / "ours", long_term_weight=0, short_term_weight=0, dropout=0.1)
    settings = config(tmp_path / "plain", num_train_epochs=EPOCHS, optim="adamw_torch", learning_rate=3e-3)
    plain = Trainer(tiny_bert(dropout=0.1), settings, train_dataset=noise())
    plain.train()
    assert torch.equal(weights(ours.model), weights(plain.model))
    assert not logged(ours, "honest_gate")


@pytest.mark.parametrize("step", [3 * STEPS + 5, 4 * STEPS])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, step: int) -> None:
    saves = {"save_strategy": "steps", "save_steps": step, "logits_retention": "needed", "dropout": 0.1}
    whole = run(tmp_path / "whole", **saves)
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "elsewhere")
    resumed = run(tmp_path / "resumed", resumes=str(tmp_path / "elsewhere"), **saves)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert gates(whole)[4] > 0.1
    for name in ("honest_gate", "honest_smoothing"):
        assert logged(resumed, name)[-1] == logged(whole, name)[-1]
    assert smoothings(whole)[5] > 0.05


def test_a_checkpoint_of_another_trust_is_refused(tmp_path: Path) -> None:
    run(tmp_path, teacher_trust="confidence", save_strategy="epoch", max_steps=2 * STEPS)
    with pytest.raises(ValueError, match="was it saved with teacher_trust='honest'"):
        run(tmp_path, resumes=True)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("this model has labels: no rule is known", {"head": "multi_label"}),
        ("this model has scores: no rule is known", {"head": "regression"}),
        ("left out: .*SequentialSampler.*train_sampling_strategy='random'", {"train_sampling_strategy": "sequential"}),
        ("left out: an epoch has 2 steps", {"per_device_train_batch_size": 64}),
    ],
)
def test_what_has_no_rule_is_refused_before_the_first_step(tmp_path: Path, message: str, changes: Any) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert not (tmp_path / "_logits").exists()


def test_a_stream_is_refused(tmp_path: Path) -> None:
    stream = add_sample_ids(noise()).to_iterable_dataset().shuffle(seed=0, buffer_size=96)
    with pytest.raises(ValueError, match="labels that are not known before training"):
        run(tmp_path, data=stream, num_samples=96, max_steps=EPOCHS * STEPS)
