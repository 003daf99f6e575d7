"""The report and the history of taggers, question answering and language models, on runs of a one-layer model."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cleanlab.token_classification.filter import find_label_issues
from cleanlab.token_classification.rank import get_label_quality_scores
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from browser import Browser, needs_browser
from lstsd_hf import LogitsStore, LSTSDTrainer, StoreError, add_sample_ids, clean, read_history, write_report
from lstsd_hf.report.compare import write_comparison
from toys import config

tokenizers = pytest.importorskip("tokenizers")
NO, WORDS, TAGS = -100, 24, ("noun", "verb", "other")
SHAPE: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32, "max_position_embeddings": 32, "initializer_range": 0.2}
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FLIPPED = ((3, 1), (7, 0), (11, 4), (20, 2), (31, 3))  # sample and word of the tags that are wrong
CUT = 40  # the sample whose last words are cut off


def tokenizer() -> PreTrainedTokenizerFast:
    words = tokenizers.models.WordLevel({"[PAD]": 0, **{f"w{i}": i for i in range(1, WORDS)}}, unk_token="[PAD]")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]")


def sentences(count: int = 60) -> datasets.Dataset:
    """Sentences whose words decide their tags, with a few wrong; one has an emoji, two units long in JavaScript."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        tokens = rng.integers(1, WORDS, 5 + i % 4)
        tags = tokens % 3
        for sample, word in FLIPPED:
            if sample == i:
                tags[word] = (tags[word] + 1) % 3
        words = [f"w{token}" for token in tokens]
        if i == FLIPPED[2][0]:
            words[0] = "\N{PARTY POPPER}"
        kept = 3 if i == CUT else len(tokens)
        labels = [NO, *tags[:kept], NO]
        row = {"words": words, "tags": [TAGS[tag] for tag in tags]}
        rows.append({**row, "input_ids": [1, *tokens[:kept], 2], "labels": labels})
    return add_sample_ids(datasets.Dataset.from_list(rows))


def train(kind: str, folder: Path, data: datasets.Dataset, **changes: Any) -> Any:
    set_seed(0)
    if kind == "tokens":
        names = {"id2label": dict(enumerate(TAGS)), "label2id": {name: i for i, name in enumerate(TAGS)}}
        model: Any = BertForTokenClassification(BertConfig(**SHAPE, **names))
    elif kind == "spans":
        model = BertForQuestionAnswering(BertConfig(**SHAPE, **OFF))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    collator = (DataCollatorWithPadding if kind == "spans" else DataCollatorForTokenClassification)(tokenizer())
    settings = {"num_train_epochs": 6, "optim": "adamw_torch", "learning_rate": 1e-2, "logging_steps": 5}
    trainer = LSTSDTrainer(model, config(folder, **settings | changes), train_dataset=data, data_collator=collator)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    train("tokens", folder, sentences())
    page_by_ids(folder)
    return folder


def page_by_ids(tagged: Path) -> str:
    page = write_report(tagged, sentences().select_columns(["sample_id", "words", "tags"]))
    return page.read_text(encoding="utf-8")


def table(folder: Path, name: str) -> Any:
    return pq.read_table(folder / "_report" / name).to_pandas()


# ---- tokens


def test_the_history_has_a_row_for_each_labelled_token(tagged):
    history = read_history(tagged)
    store, data = LogitsStore.open(tagged / "_logits"), sentences()
    labels = [[label for label in row if label != NO] for row in data["labels"]]
    assert history["label"][:] == [label for row in labels for label in row]
    assert history["sample_id"][:] == [i for i, row in enumerate(labels) for _ in row]
    assert history["token"][:] == [place for row in labels for place in range(len(row))]
    assert history.features["label"].names == list(TAGS)
    one = history[100]
    rows = store.read_rows(4, [one["sample_id"]]).parts["values"]
    expected = torch.from_numpy(rows).float().log_softmax(dim=-1)[one["token"], one["label"]]
    assert one["loss_by_epoch"][4] == pytest.approx(-expected.item(), abs=1e-5)
    assert one["epochs"] == [0, 1, 2, 3, 4, 5]


def test_wrong_tags_come_first_and_cleanlab_finds_them_too(tagged):
    tokens = table(tagged, "tokens.parquet")
    worst = tokens.sort_values("noise_rank").head(len(FLIPPED))
    assert set(zip(worst["sample_id"], worst["token"], strict=True)) == set(FLIPPED)
    assert (worst["noise_score"] > 0.5).all()
    assert all(
        TAGS[found] == sentences_as_they_were(*key)
        for *key, found in worst[["sample_id", "token", "suggested_label"]].to_numpy()
    )

    # cleanlab ranks them first too, by the means over epochs, and every issue that it finds is flagged here.
    labels, probs, offsets = (np.load(tagged / "_report" / f"{n}.npy") for n in ("labels", "pred_probs", "offsets"))
    store = LogitsStore.open(tagged / "_logits")
    by_epoch = [torch.from_numpy(np.array(store.epoch_rows(epoch))).softmax(dim=-1).numpy() for epoch in range(6)]
    np.testing.assert_allclose(probs, by_epoch[-1], atol=1e-6)
    given = [part.tolist() for part in np.split(labels, offsets[1:-1])]
    means = np.split(np.mean(by_epoch, axis=0), offsets[1:-1])
    _, quality = get_label_quality_scores(given, means, token_score_method="normalized_margin")
    ranked = sorted((score, sample, token) for sample, row in enumerate(quality) for token, score in row.items())
    assert {(sample, int(token)) for _, sample, token in ranked[: len(FLIPPED)]} == set(FLIPPED)
    flagged = tokens[tokens["noise_score"] > 0.5]
    issues = {(int(sample), int(token)) for sample, token in find_label_issues(given, means)}
    assert issues
    assert issues <= set(zip(flagged["sample_id"], flagged["token"], strict=True))


def sentences_as_they_were(sample: int, word: int) -> str:
    return TAGS[sentences()[sample]["input_ids"][word + 1] % 3]


def test_a_sample_is_its_worst_token(tagged):
    tokens, samples = table(tagged, "tokens.parquet"), table(tagged, "samples.parquet")
    assert samples["sample_id"].tolist() == list(range(60))
    worst = tokens.sort_values(["sample_id", "noise_rank"]).groupby("sample_id").first()
    for name in ("token", "label", "noise_score", "suggested_label", "confidence"):
        assert (samples[name].to_numpy() == worst[name].to_numpy()).all(), name
    by_sample = tokens.groupby("sample_id")
    assert (samples["tokens"].to_numpy() == by_sample.size().to_numpy()).all()
    flagged = by_sample["noise_score"].apply(lambda scores: (scores > 0.5).sum())
    assert (samples["flagged_tokens"].to_numpy() == flagged.to_numpy()).all()
    assert sorted(samples["noise_rank"]) == list(range(1, 61))


def test_words_are_found_by_tags_without_ids_and_a_cut_sentence_has_them_too(tagged, tmp_path):
    words = sentences().select_columns(["words", "tags"])
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in words), encoding="utf-8")
    words.to_csv(tmp_path / "by_numpy.csv")  # ['w1' 'w2']
    words.to_pandas().map(list).to_csv(tmp_path / "by_python.csv", index=False)  # ['w1', 'w2']
    expected = page_by_ids(tagged)
    for given in (words, file, tmp_path / "by_numpy.csv", tmp_path / "by_python.csv"):
        assert write_report(tagged, given).read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.select_columns(["words"]), r"expected the samples' ids in 'sample_id'"),
        (lambda data: data.select_columns(["sample_id", "tags"]), r"expected one of words, a list in each row"),
        (
            lambda data: data.select_columns(["words", "tags"]).map(lambda row: {"tags": ["noun"] * len(row["tags"])}),
            r"sample id 0 has the tag 'noun' in 'tags', where the run has class \d",
        ),
        (
            lambda data: data.map(lambda row: {"sample_id": row["sample_id"] + 1000}),
            r"none of the run's samples",
        ),
    ],
)
def test_a_data_set_of_other_sentences_is_refused(tagged, change, message):
    before = (tagged / "_report" / "report.html").read_bytes()
    with pytest.raises(ValueError, match=message):
        write_report(tagged, change(sentences()))
    assert (tagged / "_report" / "report.html").read_bytes() == before


def test_sentences_in_another_order_are_refused_and_tags_may_be_spelled_otherwise(tagged):
    data = sentences().select_columns(["words", "tags"])
    with pytest.raises(ValueError, match=r"expected the tags that it was trained on, as they were"):
        write_report(tagged, data.shuffle(seed=0))
    numbers = datasets.List(datasets.ClassLabel(names=list(TAGS[::-1])))
    expected = page_by_ids(tagged)
    for given in (
        data.map(lambda row: {"tags": [f"<{tag}>" for tag in row["tags"]]}),
        data.map(lambda row: {"tags": [2 - TAGS.index(tag) for tag in row["tags"]]}).cast_column("tags", numbers),
    ):
        assert write_report(tagged, given).read_text(encoding="utf-8") == expected


def test_labels_of_pieces_of_words_have_no_mark(tmp_path):
    """Tokens stand for pieces of words, so it is not known which word a token belongs to."""
    data = sentences(16)
    train("tokens", tmp_path, data, num_train_epochs=3)
    joined = data.map(lambda row: {"words": ["".join(row["words"][:2]), *row["words"][2:]], "tags": row["tags"][1:]})
    page = write_report(tmp_path, joined.select_columns(["sample_id", "words", "tags"]))
    assert "more labels than words, so tokens are numbered, and not marked" in page.read_text(encoding="utf-8")


def test_what_takes_no_tokens_says_so(tagged, tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text(json.dumps({"words": ["w1"]}) + "\n")
    with pytest.raises(ValueError, match="holds many rows for each sample"):
        clean(tagged, file, tmp_path / "clean.jsonl", drop=True)
    with pytest.raises(ValueError, match="holds many rows for each sample"):
        write_comparison(tagged, tagged)


def test_a_tagger_of_two_classes_is_no_question_answering(tmp_path):
    """Both have two columns; their labels tell them apart."""
    data = sentences(16).map(lambda row: {"labels": [NO if label == NO else label % 2 for label in row["labels"]]})
    set_seed(0)
    trainer = LSTSDTrainer(
        BertForTokenClassification(BertConfig(**SHAPE, num_labels=2)),
        config(tmp_path, num_train_epochs=2),
        train_dataset=data,
        data_collator=DataCollatorForTokenClassification(tokenizer()),
    )
    trainer.train()
    assert "suggested_label" in read_history(tmp_path).column_names


# ---- losses


def features(count: int = 24) -> datasets.Dataset:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(count):
        tokens = rng.integers(1, WORDS, 4 + i % 5).tolist()
        start = int(np.argmax(tokens))
        end = min(start + 1, len(tokens) - 1)
        rows.append({"input_ids": tokens, "start_positions": start, "end_positions": end})
    return add_sample_ids(datasets.Dataset.from_list(rows))


def sequences(count: int = 24) -> datasets.Dataset:
    rng = np.random.default_rng(1)
    tokens = [rng.integers(1, WORDS, 4 + i % 5).tolist() for i in range(count)]
    return add_sample_ids(datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens}))


STILL = {"learning_rate": 0.0, "num_train_epochs": 2}


@pytest.mark.parametrize(("kind", "data"), [("spans", features), ("vocabulary", sequences)])
def test_the_loss_of_a_sample_is_what_the_model_says(tmp_path, kind, data):
    """Without dropout and without learning; the language model keeps all classes but one."""
    trainer = train(kind, tmp_path, data(), logits_top_k=WORDS - 1, **STILL)
    history = read_history(tmp_path)
    assert history["sample_id"][:] == list(range(24))
    model = trainer.model.eval()
    for row, told in zip(data(), history, strict=True):
        inputs = {name: torch.tensor([value]) for name, value in row.items() if name != "sample_id"}
        with torch.no_grad():
            expected = model(**inputs).loss.item()
        # The mass of the one class that is not kept is known.
        assert told["loss_by_epoch"] == pytest.approx([expected] * 2, abs=1e-4)
    assert history["rows"][:] == [len(row["input_ids"]) - (kind == "vocabulary") for row in data()]


def test_a_loss_is_bounded_by_what_was_kept(tmp_path):
    """With the two largest classes alone, a loss is at most the true one."""
    train("vocabulary", tmp_path / "few", sequences(), logits_top_k=2, **STILL)
    train("vocabulary", tmp_path / "all", sequences(), logits_top_k=WORDS - 1, **STILL)
    few, every = (np.array(read_history(tmp_path / name)["mean_loss"][:]) for name in ("few", "all"))
    assert (few <= every + 1e-4).all()
    assert (few < every - 0.1).any()
    page = write_report(tmp_path / "few").read_text(encoding="utf-8")
    assert "their part of a loss is a lower bound" in page


@pytest.mark.parametrize(("kind", "data"), [("spans", features), ("vocabulary", sequences)])
def test_what_is_learnt_and_forgotten(tmp_path, kind, data):
    train(kind, tmp_path, data(), logits_top_k=4)
    texts = data().add_column("text", [f"text {i}" for i in range(24)]).select_columns(["sample_id", "text"])
    write_report(tmp_path, texts)
    samples, history = table(tmp_path, "samples.parquet"), read_history(tmp_path)
    assert samples["last_loss"].mean() < samples["first_loss"].mean()
    right = np.array(history["right_by_epoch"][:])  # (samples, epochs)
    assert right[:, -1].mean() > right[:, 0].mean()
    if kind == "spans":
        assert samples["forgetting_events"].tolist() == (np.diff(right, axis=1) < 0).sum(axis=1).tolist()
    else:  # where the share falls, at least one token was forgotten
        assert (samples["forgetting_events"] >= (np.diff(right, axis=1) < 0).sum(axis=1)).all()
    with pytest.raises(ValueError, match="none of the 24 samples"):
        write_report(tmp_path, texts.map(lambda row: {"sample_id": row["sample_id"] + 100}))


def test_a_run_without_labels_of_rows_says_so(tmp_path):
    store = LogitsStore.create(tmp_path / "_logits", 4, (3,), "float32", "x", ragged=True)
    store.record(0, [0, 1], np.zeros((3, 3)), counts=[1, 2])
    store.seal(0)
    with pytest.raises(StoreError, match="holds no label of any row"):
        read_history(tmp_path)


def test_a_sample_that_was_never_right_or_seen_is_told(tmp_path):
    """A sample whose number of rows changed has no prediction in that epoch."""
    store = LogitsStore.create(tmp_path / "_logits", 3, (2,), "float32", "x", ragged=True)
    rng = np.random.default_rng(0)
    for epoch, counts in enumerate(([2, 3], [3, 3])):
        labels = [1, 2, 1, 2, 0] if epoch == 0 else [0, 1, 2, 1, 2, 0]
        store.record(epoch, [0, 2], rng.normal(size=(sum(counts), 2)), counts=counts, labels=labels)
        store.seal(epoch)
    history = read_history(tmp_path)
    assert history["sample_id"][:] == [0, 2]
    assert history[0]["loss_by_epoch"][1] is None
    assert math.isfinite(history[0]["mean_loss"])
    assert all(math.isfinite(loss) for loss in history[1]["loss_by_epoch"])


# ---- in the browser


@pytest.mark.parametrize("size", ["desktop", "phone"])
class TestInABrowser:
    pytestmark = needs_browser

    def test_the_token_is_marked_in_its_text(self, tagged, tmp_path, size):
        page = write_report(tagged, sentences().select_columns(["sample_id", "words", "tags"]))
        with Browser(page, tmp_path, size) as browser:
            assert browser.run("return document.documentElement.scrollWidth") <= browser.width
            flagged = table(tagged, "samples.parquet")["flagged_tokens"]
            assert browser.text("h1") == f"{flagged.sum()} labels of tokens look wrong"
            assert f"They are in {(flagged > 0).sum()} of 60 samples." in browser.text(".lead")
            tokens = browser.text(".tiles div")
            cut = len(sentences()[CUT]["tags"]) - 3
            assert tokens.split("\n")[:2] == ["tokens", str(sum(map(len, sentences()["tags"])) - cut)]
            found = set()
            browser.click("#start")
            for _ in FLIPPED:
                sample = int(browser.text("#place").split()[1].rstrip(","))
                words = sentences()[sample]["words"]
                assert browser.text("#text") == " ".join(words)
                marked = browser.text("#text mark")
                assert browser.text("#place").endswith(f"· {marked}")
                found.add((sample, marked))
                browser.press("k")
            assert found == {(sample, sentences()[sample]["words"][word]) for sample, word in FLIPPED}
            browser.click("#download")
            rows = browser.downloaded("decisions.csv")
            assert {(int(row["sample_id"]), int(row["token"])) for row in rows} == set(FLIPPED)
            assert {row["decision"] for row in rows} == {"keep"}
            assert browser.column("token")[:5] == [
                sentences()[int(i)]["words"][dict(FLIPPED)[int(i)]] for i in browser.column("id")[:5]
            ]
            assert browser.barriers() == []

    def test_losses_are_listed_and_drawn(self, tmp_path, size):
        train("vocabulary", tmp_path / "run", sequences(), logits_top_k=4, num_train_epochs=3)
        texts = sequences().add_column("text", [f"text <b>{i}</b>" for i in range(24)])
        page = write_report(tmp_path / "run", texts, "text")
        samples = table(tmp_path / "run", "samples.parquet").sort_values("loss_rank")
        with Browser(page, tmp_path, size) as browser:
            assert browser.run("return document.documentElement.scrollWidth") <= browser.width
            assert browser.column("id")[:10] == [str(i) for i in samples["sample_id"][:10]]
            assert browser.text("#text") == f"text <b>{samples['sample_id'].iloc[0]}</b>"
            browser.click("#next")
            assert browser.text("#text") == f"text <b>{samples['sample_id'].iloc[1]}</b>"
            assert browser.text("[data-measure=mean_loss]") == f"{samples['mean_loss'].iloc[1]:.3f}"
            browser.choose("#show", "forgotten")
            count = int((samples["forgetting_events"] > 0).sum())
            assert browser.text("#listed") == f"{count} listed"
            assert all(plot.size["height"] > 100 and plot.text for plot in browser.all(".plot"))
            assert browser.barriers() == []
