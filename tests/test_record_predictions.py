"""`record_predictions` and `lstsd record`: a sealed store of what any model predicts, resumable to the byte."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertTokenizer,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    set_seed,
)

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreError, StoreMismatchError, add_sample_ids, cli, record_predictions
from lstsd_hf.method.vocabulary import student_events
from lstsd_hf.training.forecast import shutil as disk
from lstsd_hf.training.record import _Recording
from toys import BAD, GOOD, VOCABULARY, config, logged, rows, tiny_bert

BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
}


@pytest.fixture
def tokenizer(model: str) -> Any:
    return BertTokenizer.from_pretrained(model)


def uneven(count: int = 20, seed: int = 0, labels: bool = True) -> datasets.Dataset:
    """Rows of 3 to 10 tokens, with a label for each token."""
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(1, VOCABULARY, rng.integers(3, 11)).tolist() for _ in range(count)]
    columns: dict[str, Any] = {"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
    if labels:
        columns["labels"] = [[token % 4 if i else -100 for i, token in enumerate(row)] for row in tokens]
    return add_sample_ids(datasets.Dataset.from_dict(columns))


def tagger() -> Any:
    set_seed(0)
    return BertForTokenClassification(BertConfig(**BERT, num_labels=4))


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads without a tokenizer."""
    length = max(len(row["input_ids"]) for row in features)
    fill = {"labels": -100}
    return {
        name: torch.tensor([row[name] + [fill.get(name, 0)] * (length - len(row[name])) for row in features])
        for name in ("input_ids", "attention_mask", "labels")
    }


def contents(store: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(store).rglob("*")) if path.is_file()}


# ---- what is recorded


def test_a_classifier_is_recorded_in_evaluation_mode_by_sample_id(tmp_path):
    data = add_sample_ids(rows(21)).shuffle(3)
    names = {0: "red", 1: "green", 2: "blue"}
    teacher = tiny_bert(id2label=names, label2id={name: i for i, name in names.items()}).train()
    teacher.bert.embeddings.dropout.eval()
    store = record_predictions(teacher, data, tmp_path / "s", batch_size=4, dtype="float32", disable_tqdm=True)
    assert (store.sealed_epochs, store.open_epochs) == ([0], [])
    assert store.source["classes"] == ["red", "green", "blue"]
    assert store.source["inputs"] == ["attention_mask", "input_ids"]
    assert teacher.training  # its mode is restored
    assert not teacher.bert.embeddings.dropout.training
    with torch.no_grad():
        expected = teacher.eval()(torch.tensor(data["input_ids"])).logits.numpy()
    np.testing.assert_allclose(store.read(0, data["sample_id"]), expected, atol=1e-5)
    store.verify()
    before = contents(store.path)
    record_predictions(teacher, data.remove_columns("label"), store.path, batch_size=4, dtype="float32")
    assert contents(store.path) == before  # complete already, and labels do not matter


def test_taggers_language_models_and_spans(tmp_path, tokenizer):
    data, pads = uneven(), DataCollatorForTokenClassification(tokenizer)
    set_seed(0)
    tagger = BertForTokenClassification(BertConfig(**BERT, num_labels=4)).eval()
    store = record_predictions(tagger, data, tmp_path / "tags", pads, batch_size=3, dtype="float32", disable_tqdm=True)
    found = store.read_rows(0, np.array([7]))
    with torch.no_grad():
        logits = tagger(torch.tensor([data[7]["input_ids"]])).logits[0]
    np.testing.assert_allclose(found.parts["values"], logits[1:].numpy(), atol=1e-5)

    writer = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    data = data.map(lambda row: {"labels": row["input_ids"]})
    store = record_predictions(writer, data, tmp_path / "lm", pads, batch_size=3, top_k=5, dtype="float32")
    found = store.read_rows(0, np.array([7]))
    with torch.no_grad():
        logits = writer(torch.tensor([data[7]["input_ids"]])).logits[0]
    positions = torch.arange(len(logits) - 1)
    _, own = student_events(logits, positions, torch.empty(0, len(positions), 5, dtype=torch.int64), 5)
    assert store.vocabulary == VOCABULARY
    assert np.array_equal(found.parts["classes"], own.classes.numpy())
    np.testing.assert_allclose(found.parts["rest"], own.log_rest.numpy(), atol=1e-4)

    reader = BertForQuestionAnswering(BertConfig(**BERT)).eval()
    store = record_predictions(reader, uneven(labels=False), tmp_path / "qa", processing_class=tokenizer, batch_size=3)
    assert store.read_rows(0, np.array([7])).parts["values"].shape == (len(data[7]["input_ids"]), 2)


def test_a_language_models_answers_teach_a_smaller_one_with_another_k(tmp_path, tokenizer):
    data = uneven(16).map(lambda row: {"labels": row["input_ids"]})
    pads, shape = DataCollatorForTokenClassification(tokenizer), {"n_layer": 1, "n_head": 2, "n_positions": 16}
    set_seed(0)
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, initializer_range=0.5, **shape))
    store = record_predictions(teacher, data, tmp_path / "s", pads, top_k=12, disable_tqdm=True)
    changes = {"outside_teacher": str(store.path), "logits_top_k": 4, "mini_generation_epochs": 1, "max_steps": 6}
    student = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, **shape))
    trainer = LSTSDTrainer(student, config(tmp_path / "run", **changes), train_dataset=data, data_collator=pads)
    trainer.train()
    assert logged(trainer, "outside_coverage") == [1.0] * 6
    assert logged(trainer, "outside_loss")[-1] < logged(trainer, "outside_loss")[0]
    smaller = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY - 20, n_embd=8, **shape))
    with pytest.raises(StoreMismatchError, match="of a vocabulary of 60, and the model's has 40"):
        LSTSDTrainer(smaller, config(tmp_path / "no", **changes), train_dataset=data, data_collator=pads).train()


# ---- resumed


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from lstsd_hf import record_predictions, add_sample_ids
from test_record_predictions import uneven
from toys import tiny_bert

class Dies(torch.nn.Module):
    def __init__(self, model, after):
        super().__init__()
        self.model, self.left = model, after
        self.config = model.config
    def forward(self, input_ids, attention_mask=None):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(input_ids=input_ids, attention_mask=attention_mask)

def pad(features):
    size = max(len(f["input_ids"]) for f in features)
    names = ("input_ids", "attention_mask")
    return {{n: torch.tensor([f[n] + [0] * (size - len(f[n])) for f in features]) for n in names}}

data = uneven(40, labels=False)
for folder, after in {calls!r}:
    record_predictions(Dies(tiny_bert(), after), data, folder, pad, batch_size=4, dtype="float32", disable_tqdm=True)
"""


def run_script(*calls: tuple[str, int]) -> int:
    code = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), calls=calls)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], check=False, env=environment, timeout=300).returncode


def test_killed_and_started_again_it_leaves_the_same_bytes(tmp_path):
    assert run_script((str(tmp_path / "cut"), 5)) == -signal.SIGKILL
    cut = LogitsStore.open(tmp_path / "cut")
    assert not cut.sealed_epochs
    # Four blocks from five predictions: the first batch is predicted twice, once to find the store's layout.
    assert [block.step for journal in cut.journals() for block in journal.blocks()] == [0, 1, 2, 3]
    assert run_script((str(tmp_path / "whole"), 99), (str(tmp_path / "cut"), 7)) == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_rows_in_another_order_may_go_on(tmp_path, monkeypatch):
    data, whole = uneven(), record_predictions(tagger(), uneven(), tmp_path / "whole", collate, batch_size=4)
    predict, calls = _Recording._predict, iter(range(99))

    def interrupted(self: Any, batch: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(_Recording, "_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_predictions(tagger(), data, tmp_path / "cut", collate, batch_size=4)
    record_predictions(tagger(), data.shuffle(seed=1), tmp_path / "cut", collate, batch_size=4)
    assert contents(tmp_path / "cut") == contents(whole.path)


def test_labels_that_are_words_do_not_stop_a_classifier(tmp_path):
    data = add_sample_ids(rows(12))
    words = data.remove_columns("label").add_column("label", ["no", "yes"] * 6)
    stores = [record_predictions(tiny_bert(), rows_, tmp_path / str(i)) for i, rows_ in enumerate((data, words))]
    assert contents(stores[0].path) == contents(stores[1].path)


def test_labels_at_other_tokens_are_refused(tmp_path):
    data = uneven()
    record_predictions(tagger(), data, tmp_path / "s", collate, batch_size=4)
    other_values = data.map(lambda row: {"labels": [-100 if label < 0 else 0 for label in row["labels"]]})
    record_predictions(tagger(), other_values, tmp_path / "s", collate, batch_size=4)
    moved = data.map(lambda row: {"labels": [*row["labels"][1:], -100]})  # as many, each one token earlier
    with pytest.raises(StoreMismatchError, match=r"other tokens for 20 samples, first for sample ids \[0, 1"):
        record_predictions(tagger(), moved, tmp_path / "s", collate, batch_size=4)
    settings = config(tmp_path / "run", num_train_epochs=1, outside_teacher=str(tmp_path / "s"))
    LSTSDTrainer(tagger(), settings, collate, train_dataset=other_values).train()
    with pytest.raises(StoreMismatchError, match="samples are at other tokens"):
        LSTSDTrainer(tagger(), settings, collate, train_dataset=moved).train()


def test_a_language_model_of_another_kind_is_refused(tmp_path):
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    arguments: Any = {"collator": collate, "batch_size": 4, "top_k": 4}
    assert record_predictions(model, uneven(), tmp_path / "s", **arguments).head == "causal_lm"
    with pytest.raises(StoreMismatchError, match="expected problem_type 'seq2seq_lm', found 'causal_lm'"):
        record_predictions(model, uneven(), tmp_path / "s", problem_type="seq2seq_lm", **arguments)


def test_a_call_that_would_mix_is_refused(tmp_path, monkeypatch):
    data = add_sample_ids(rows(12))

    def recorded(model: Any, rows_: Any = data, **changes: Any) -> LogitsStore:
        return record_predictions(model, rows_, tmp_path / "s", **{"batch_size": 4, "disable_tqdm": True, **changes})

    recorded(tiny_bert())
    for arguments, message in (
        ((tiny_bert(seed=1),), "expected model 'BertForSequenceClassification, weights "),
        ((tiny_bert(), add_sample_ids(rows(12, seed=1))), "expected inputs '12 rows, xxh3 "),
    ):
        with pytest.raises(StoreMismatchError, match=message):
            recorded(*arguments)
    with pytest.raises(StoreMismatchError, match="batch_size 6, found 4"):
        recorded(tiny_bert(), batch_size=6)
    with pytest.raises(StoreMismatchError, match="dtype 'float32', found 'float16'"):
        recorded(tiny_bert(), dtype="float32")
    LSTSDTrainer(tiny_bert(), config(tmp_path / "run", num_train_epochs=1), train_dataset=data).train()
    with pytest.raises(StoreError, match="holds the predictions of a run: expected a new folder"):
        record_predictions(tiny_bert(), data, tmp_path / "run" / "_logits", batch_size=4)
    monkeypatch.setattr(disk, "disk_usage", lambda path: type("Usage", (), {"free": 50}))
    with pytest.raises(StoreError, match=r"and 5e-08 GB are free.* name a folder on another disk"):
        record_predictions(tiny_bert(), data, tmp_path / "full", batch_size=4)
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is not allowed"),
        ({"top_k": True}, "top_k=True is not allowed"),
        ({"problem_type": "classes"}, "problem_type='classes' is not allowed: expected None or one of 'regression'"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' is not allowed: expected 'float16' or 'float32'"),
        ({"dataset": rows(3).to_iterable_dataset()}, "expected a data set with a length"),
        ({"dataset": rows(3).select(range(0))}, "dataset is empty"),
        ({"dataset": datasets.Dataset.from_dict({"text": ["a"]})}, "takes none of them: expected its inputs"),
        ({"dataset": rows(3).add_column("sample_id", [1, 1, 2])}, "repeated sample ids"),
    ],
)
def test_arguments_that_are_wrong(tmp_path, changes, message):
    arguments = {"model": tiny_bert(), "dataset": rows(4), "path": tmp_path / "s"} | changes
    with pytest.raises(ValueError, match=message):
        record_predictions(**arguments)
    assert not (tmp_path / "s").exists()


def test_as_many_classes_as_the_vocabulary_has_are_refused_by_the_name_of_the_argument(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=8, n_layer=1, n_head=2))
    data = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "labels": [[1, 2, 3]] * 4})
    with pytest.raises(ValueError, match=r"^top_k=12 and a vocabulary of 12: .* Set top_k lower"):
        record_predictions(model, data, tmp_path / "s", top_k=12)
    assert record_predictions(model, data, tmp_path / "s", top_k=11).row_shape == (11,)


class WithoutLabels(torch.nn.Module):
    """Its loss is the user's, so its forward takes no labels."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.of_tokens, self.bias = torch.nn.Embedding(VOCABULARY, 3), bias

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.of_tokens(input_ids).sum(dim=1) + self.bias * (input_ids[:, :1] % 2)}


def test_labels_are_not_given_to_a_model_that_takes_none(tmp_path):
    model, data = WithoutLabels(), rows(8)
    found = record_predictions(model, data, tmp_path / "s", dtype="float32").read(0, np.arange(8))
    torch.testing.assert_close(torch.from_numpy(found), model(torch.tensor(data["input_ids"]))["logits"].detach())


def test_logits_that_are_not_finite_are_told_of_and_named_by_the_student(tmp_path, caplog):
    data = add_sample_ids(rows(8))
    odd = [i for i, tokens in enumerate(data["input_ids"]) if tokens[0] % 2]
    store = record_predictions(WithoutLabels(np.inf), data.select(odd), tmp_path / "s")
    assert f"not finite for {len(odd)} of {len(odd)} samples, first for sample ids {odd[:5]}" in caplog.text
    settings = config(tmp_path / "run", outside_teacher=store.path, num_train_epochs=1)
    with pytest.raises(StoreMismatchError, match=r"expected a finite prediction of some sample"):
        LSTSDTrainer(tiny_bert(), settings, train_dataset=data).train()


# ---- the command


@pytest.fixture
def teacher(model: str, tmp_path: Path) -> str:
    """A folder with a classifier of two classes that have names."""
    found = AutoModelForSequenceClassification.from_pretrained(model, id2label={0: "bad", 1: "good"})
    found.save_pretrained(tmp_path / "teacher")
    BertTokenizer.from_pretrained(model).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def train_file(tmp_path: Path) -> str:
    lines = [f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]},{('bad', 'good')[i % 2]}" for i in range(24)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(tmp_path / "train.csv")


def test_the_command_records_what_lstsd_train_then_takes(tmp_path, model, teacher, train_file, capsys):
    store = str(tmp_path / "store")
    cli.main(["record", "--model", teacher, "--dataset", train_file, "-o", store])
    assert f"Train with outside_teacher={store}" in capsys.readouterr().out
    assert LogitsStore.open(store).source["classes"] == ["bad", "good"]
    cli.main(["store", "info", store])
    assert "made by:       BertForSequenceClassification" in capsys.readouterr().out
    run = ["train", "--model_name_or_path", model, "--train_file", train_file, "--output_dir", str(tmp_path / "out")]
    run += ["--do_train", "--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--num_train_epochs", "1"]
    cli.main([*run, "--outside_teacher", store, "--outside_weight", "0.6"])
    assert "Teachers: outside from epoch 0." in "".join(capsys.readouterr())
    with pytest.raises(SystemExit) as leaving:
        cli.main([*run, "--outside_teacher", store, "--max_seq_length", "5"])
    assert leaving.value.code == 2
    assert "was made on other inputs: attention_mask, input_ids" in capsys.readouterr().err.splitlines()[-1]


def test_names_of_very_many_classes_are_left_out(tmp_path, caplog):
    names = {i: f"{i} {'of a long name' * 4}" for i in range(20_000)}
    teacher = tiny_bert(num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()})
    store = record_predictions(teacher, rows(8), tmp_path / "s", batch_size=8)
    assert store.source["classes"] is None
    assert (store.path / "store.json").stat().st_size < 1e5
    student = tiny_bert(num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()})
    settings = config(tmp_path / "out", outside_teacher=str(store.path), outside_weight=0.5, num_train_epochs=1)
    LSTSDTrainer(student, settings, train_dataset=rows(8)).train()
    assert "The outside teacher's classes are not named (id2label), and those of the model ['0 of a" in caplog.text
    assert len(caplog.text) < 10_000


def test_the_command_needs_no_labels(tmp_path, teacher, train_file):
    texts = [line.split(",")[0] for line in Path(train_file).read_text(encoding="utf-8").splitlines()[1:]]
    cli.main(["record", "--model", teacher, "--dataset", train_file, "-o", str(tmp_path / "both")])
    expected = LogitsStore.open(tmp_path / "both")
    for name, header, end in (("one", "text,label", ",good"), ("empty", "text,label", ","), ("none", "text", "")):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([header, *(text + end for text in texts), ""]), encoding="utf-8")
        cli.main(["record", "--model", teacher, "--dataset", str(path), "-o", str(tmp_path / name)])
        found = LogitsStore.open(tmp_path / name)
        assert (found.fingerprint, found.epoch_checksums) == (expected.fingerprint, expected.epoch_checksums)


def test_inputs_of_the_command_that_are_wrong_end_in_one_line(tmp_path, model, teacher, train_file, capsys):
    def refused(*changes: str) -> str:
        base = {"--model": teacher, "--dataset": train_file, "-o": str(tmp_path / "s")}
        given = base | dict(zip(changes[::2], changes[1::2], strict=True))
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main(["record", *(word for pair in given.items() for word in pair)])
        assert leaving.value.code == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("lstsd record: error: ")
        return err[-1]

    assert "no model's configuration" in refused("--model", str(tmp_path / "nobody"))
    assert "model is empty: expected a value" in refused("--model", "")
    assert "returned no logits" in refused("--model", model)
    assert "nowhere.csv" in refused("--dataset", str(tmp_path / "nowhere.csv"))
    assert "top_k=0 is not allowed" in refused("--top_k", "0")
    assert "invalid choice: 'int8'" in refused("--dtype", "int8")
    assert "data_dir goes with task_name" in refused("--data_dir", "GLUE")
    assert "where='label=1' goes with train_file" in refused("--dataset", "rte", "--where", "label=1")
    tokens = {"input_ids": [[1, 2]] * 4, "label": [0, 1] * 2}
    datasets.Dataset.from_dict(tokens).save_to_disk(str(tmp_path / "tokens"))
    line = refused("--dataset", str(tmp_path / "tokens"), "--where", "label=1")
    assert "has input_ids, so it is used as it is: expected neither where nor text_columns" in line
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("mine", encoding="utf-8")
    assert "is not empty: expected a new folder" in refused("-o", str(tmp_path / "full"))
    assert (tmp_path / "full" / "letter").read_text(encoding="utf-8") == "mine"


def test_an_interrupt_says_how_to_go_on(tmp_path, teacher, train_file, capsys, monkeypatch):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lstsd_hf.glue.record.record_predictions", interrupt)
    with pytest.raises(SystemExit) as leaving:
        cli.main(["record", "--model", teacher, "--dataset", train_file, "-o", str(tmp_path / "s")])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert leaving.value.code == 130
    assert "The same command goes on from here." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input_ids": [[2, -1], [2]]}, "A row has the token id -1 in 'input_ids': expected ids from 0 to"),
        ({"input_ids": ["ab", "c"]}, "Column 'input_ids' holds string, or has missing values: expected a list of"),
        ({"input_ids": [[2.5], [1.0]]}, "Column 'input_ids' holds list<item: double>, or has missing values"),
        ({"input_ids": [None, [2]]}, "or has missing values: expected a list of integers in each row"),
        ({"input_ids": [[2, None], [2]]}, "or has missing values: expected a list of integers in each row"),
        ({"input_ids": [[2], [2]], "token_type_ids": [[0], [7]]}, "A row has the type 7 in 'token_type_ids'"),
    ],
)
def test_tokens_in_a_folder_that_are_no_tokens(tmp_path, teacher, capsys, columns, message):
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "rows")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["record", "--model", teacher, "--dataset", str(tmp_path / "rows"), "-o", str(tmp_path / "s")])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert message in said


def test_labels_in_a_folder_that_a_classifier_does_not_need_may_be_words(tmp_path, teacher, capsys):
    rows = datasets.Dataset.from_dict({"input_ids": [[2, 3], [2]], "label": ["yes", None], "x": [1, 2]})
    rows.save_to_disk(tmp_path / "rows")
    command = ["record", "--model", teacher, "--dataset", str(tmp_path / "rows"), "-o", str(tmp_path / "s")]
    with pytest.raises(SystemExit):
        cli.main([*command, "--where", "x=1"])
    assert "has input_ids, so it is used as it is: expected neither where" in capsys.readouterr().err
    cli.main(command)
    assert LogitsStore.open(tmp_path / "s").num_samples == 2
