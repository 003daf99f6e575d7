"""How a model's head is recognised: by its class, for every class of transformers, and by what it returns."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForMultipleChoice, BertModel
from transformers.models.auto import modeling_auto

from lstsd_hf.training.model_head import known_columns, many_rows_problem, refuse_unsupported, rows_of
from toys import tiny_bert

ONE_ROW = [
    "AUDIO_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "MULTIPLE_CHOICE",
    "NEXT_SENTENCE_PREDICTION",
    "SEQUENCE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION",
]
MANY_ROWS = {
    "CAUSAL_LM": {"causal_lm"},
    "MASKED_LM": {"masked_lm", "seq2seq_lm", "causal_lm"},  # BART and XLM are in two tables
    "QUESTION_ANSWERING": {"question_answering"},
    "SEQ_TO_SEQ_CAUSAL_LM": {"seq2seq_lm", "causal_lm"},
    "TOKEN_CLASSIFICATION": {"token_classification"},
}
REFUSED = [
    "AUDIO_FRAME_CLASSIFICATION",
    "CTC",
    "DEPTH_ESTIMATION",
    "IMAGE_SEGMENTATION",
    "IMAGE_TO_IMAGE",
    "INSTANCE_SEGMENTATION",
    "KEYPOINT_DETECTION",
    "MASKED_IMAGE_MODELING",
    "MASK_GENERATION",
    "OBJECT_DETECTION",
    "RNNT",
    "SEMANTIC_SEGMENTATION",
    "TABLE_QUESTION_ANSWERING",
    "TEXT_TO_SPECTROGRAM",
    "TEXT_TO_WAVEFORM",
    "TIME_SERIES_PREDICTION",
    "UNIVERSAL_SEGMENTATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "ZERO_SHOT_OBJECT_DETECTION",
]


def models(kind: str) -> list[nn.Module]:
    """An empty module with the name of each class of a kind; only the name matters."""
    table = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", None)
    if table is None:
        pytest.skip("an older version of transformers")
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in table.values()]
    assert entries
    return [type(name, (nn.Module,), {})() for names in entries for name in names]


@pytest.mark.parametrize("kind", ONE_ROW)
def test_classes_with_one_row_for_each_sample_are_taken(kind):
    for model in models(kind):
        refuse_unsupported(model)
        assert many_rows_problem(model) is None


@pytest.mark.parametrize("kind", MANY_ROWS)
def test_classes_with_many_rows_are_known_by_their_names(kind):
    for model in models(kind):
        refuse_unsupported(model)
        assert many_rows_problem(model) in MANY_ROWS[kind]


@pytest.mark.parametrize("kind", REFUSED)
def test_classes_of_another_kind_are_refused(kind):
    for model in models(kind):
        with pytest.raises(ValueError, match=rf"^{type(model).__name__} is a model for .*Train it with the plain"):
            refuse_unsupported(model)


def test_a_model_of_the_users_own_and_one_without_a_head_are_taken():
    refuse_unsupported(nn.Linear(2, 3))
    refuse_unsupported(BertModel(tiny_bert().config))


def test_columns_are_known_of_a_stock_model_whose_last_layer_is_the_configs():
    assert known_columns(tiny_bert()) == 3
    assert known_columns(tiny_bert("regression")) == 1
    assert known_columns(BertForMultipleChoice(tiny_bert().config)) is None
    replaced = tiny_bert()
    replaced.classifier = nn.Linear(16, 5)
    assert known_columns(replaced) is None
    own = type("Own", (type(tiny_bert()),), {"__module__": "mine"})
    assert known_columns(own(tiny_bert().config)) is None


LOGITS = torch.arange(6.0).view(3, 2)
SCORES = torch.arange(3.0)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"loss": torch.tensor(1.0), "logits": LOGITS}, LOGITS),
        ({"scores": SCORES[:, None]}, SCORES[:, None]),
        ((torch.tensor(1.0), LOGITS, torch.zeros(3, 2, 2)), LOGITS),
        ([LOGITS], LOGITS),
        (LOGITS, LOGITS),
        (SCORES, SCORES[:, None]),
    ],
)
def test_rows_are_found_in_every_form_of_output(outputs, expected):
    rows = rows_of(outputs, 3)
    assert torch.equal(rows.logits, expected)
    assert not rows.paired


def test_a_pair_of_scores_is_a_row_where_the_model_was_given_two_texts_for_a_sample():
    """Chosen texts come first, then the rejected ones."""
    scores = torch.tensor([[1.0], [2.0], [3.0], [-1.0], [-2.0], [-3.0]])
    rows = rows_of({"logits": scores}, 3, {"input_ids": torch.ones(6, 4), "use_cache": False})
    assert rows.paired
    assert rows.logits.tolist() == [[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]
    with pytest.raises(ValueError, match=r"shape \(6, 1\) for 3 samples"):
        rows_of({"logits": scores}, 3, {"input_ids": torch.ones(3, 4)})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "no logits, but nothing beside its loss"),
        ({}, r"no logits, but outputs \{\}"),
        ((torch.tensor(1.0),), "no logits, but a tuple"),
        ({"logits": torch.zeros(3, 4, 2)}, r"shape \(3, 4, 2\) for 3 samples: expected \(3, classes\)"),
        (torch.zeros(4, 2), r"shape \(4, 2\) for 3 samples"),
    ],
)
def test_what_is_no_row_for_each_sample_is_refused(outputs: Any, message: str):
    with pytest.raises(ValueError, match=message):
        rows_of(outputs, 3)
