"""`lstsd train`: what it prepares, and whole runs of it on a two-layer BERT."""

import base64
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
)

from lstsd_hf import cli
from lstsd_hf.glue import run as glue
from lstsd_hf.glue import words
from lstsd_hf.glue.arguments import DataArguments, ModelArguments
from lstsd_hf.glue.prepare import label_order, prepare
from lstsd_hf.glue.tasks import TASKS
from lstsd_hf.report import measures
from toys import BAD, GOOD

ROOT = Path(__file__).parents[1]
GLUE = ROOT.parent / "shared" / "glue"
real_glue = pytest.mark.skipif(not GLUE.is_dir(), reason=f"the GLUE files are not there: {GLUE}")


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def sentences(count: int) -> list[tuple[str, int]]:
    """Sentences and their labels; one word decides the label."""
    return [(f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]}", i % 2) for i in range(count)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with small SST-2, STS-B, RTE and MNLI files."""
    root = tmp_path_factory.mktemp("glue")
    for name, count in (("train", 48), ("dev", 16)):
        rows = sentences(count)
        write(root / "SST-2" / f"{name}.tsv", "sentence\tlabel", *(f"{text}\t{label}" for text, label in rows))
        header = "index\tsentence1\tsentence2\tscore"
        write(root / "STS-B" / f"{name}.tsv", header, *(f"{i}\t{t}\tvery\t{5 * y}" for i, (t, y) in enumerate(rows)))
    write(root / "SST-2" / "test.tsv", "index\tsentence", *(f"{i}\t{t}" for i, (t, _) in enumerate(sentences(6))))
    header = "index\tsentence1\tsentence2"
    write(root / "STS-B" / "test.tsv", header, *(f"{i}\t{t}\tvery" for i, (t, _) in enumerate(sentences(3))))
    write(
        root / "RTE" / "dev.tsv",
        f"{header}\tlabel",
        "0\ta\tb\tnot_entailment",
        "1\ta\tb\tentailment",
        "2\ta\tb\tentailment",
    )
    write(root / "RTE" / "test.tsv", header, "4\ta\tb", "5\ta\tb")
    mnli = [f"{i}\tgood\tbad\t{('neutral', 'entailment')[i % 2]}" for i in range(4)]
    for name in ("train", "dev_matched", "dev_mismatched"):
        write(root / "MNLI" / f"{name}.tsv", f"{header}\tgold_label", *mnli)
    write(root / "MNLI" / "test_matched.tsv", header, "0\ta\tb")
    write(root / "MNLI" / "test_mismatched.tsv", header, "7\ta\tb", "8\ta\tb")
    return str(root)


def flags(model: str, out: Path, *more: str) -> list[str]:
    settings = "--use_cpu --disable_tqdm true --learning_rate 1e-2 --save_strategy no --num_train_epochs 3"
    return ["--model_name_or_path", model, "--output_dir", str(out), *settings.split(), *more]


def results(out: Path, name: str = "all_results.json") -> dict[str, Any]:
    return json.loads((out / name).read_text(encoding="utf-8"))


def test_errors_are_one_line_for_a_shell(
    layout: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["glue", *flags(model, tmp_path, "--task_name", "cola", "--data_dir", layout, "--do_train")])
    assert leaving.value.code == 2
    message = f"lstsd glue: error: {layout}: expected a folder 'CoLA' in data_dir for cola, found none.\n"
    assert capsys.readouterr().err == message


def test_a_fault_of_the_program_in_training_keeps_its_traceback(
    layout: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in training")

    monkeypatch.setattr(Trainer, "train", fail)
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train", "--trainer", "plain")
    with pytest.raises(RuntimeError, match="in training"):
        cli.main(["train", *argv])


def test_a_model_that_is_not_there(layout: str, tmp_path: Path) -> None:
    argv = flags(str(tmp_path / "nowhere"), tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train")
    with pytest.raises(ValueError, match="nowhere"):
        glue.prepare(argv)


# --- what is prepared ---


def test_tokens_and_ids(layout: str, model: str, tmp_path: Path) -> None:
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train", "--do_predict")
    job = glue.prepare([*argv, "--max_train_samples", "5", "--max_predict_samples", "2", "--max_seq_length", "5"])
    rows = job.data.train
    assert rows is not None
    assert rows["sample_id"][:] == [0, 1, 2, 3, 4]
    assert rows["label"][:] == [0, 1, 0, 1, 0]
    tokens = job.tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
    assert tokens == ["[CLS]", "the", "film", "was", "[SEP]"]
    assert job.data.evaluation == {}
    assert job.data.prediction["SST-2.tsv"].num_rows == 2
    assert "label" not in job.data.prediction["SST-2.tsv"].column_names


def test_pairs_and_padding(layout: str, model: str, tmp_path: Path) -> None:
    argv = flags(model, tmp_path, "--task_name", "stsb", "--data_dir", layout, "--do_train", "--pad_to_max_length")
    # The tokenizer allows at most 32.
    job = glue.prepare([*argv, "--max_seq_length", "99"])
    assert job.data.train is not None
    row = job.data.train[1]
    assert len(row["input_ids"]) == 32
    assert job.tokenizer.decode(row["input_ids"], skip_special_tokens=False).split()[:8] == (
        ["[CLS]", "the", "film", "was", "good", "[SEP]", "very", "[SEP]"]
    )
    assert sum(row["token_type_ids"]) == 2
    assert (job.config.num_labels, job.config.problem_type) == (1, "regression")


def test_first_layers(layout: str, model: str, tmp_path: Path) -> None:
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_eval")
    glue.main([*argv, "--num_hidden_layers", "1", "--output_dir", str(tmp_path)])
    assert glue.prepare([*argv, "--num_hidden_layers", "1"]).config.num_hidden_layers == 1
    with pytest.raises(ValueError, match=r"num_hidden_layers=3: expected 1 to 2, which the model has"):
        glue.prepare([*argv, "--num_hidden_layers", "3"])


def test_label_order_is_the_checkpoints_where_it_knows_the_labels() -> None:
    labels = TASKS["mnli"].labels
    known = BertConfig(id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"})
    assert label_order(labels, known) == ("contradiction", "neutral", "entailment")
    assert label_order(labels, BertConfig(num_labels=3)) == labels
    assert label_order(labels, BertConfig(num_labels=2)) == labels
    assert label_order((), known) == ()


def test_a_checkpoint_with_its_own_label_order(layout: str, model: str, tmp_path: Path) -> None:
    """Its head always predicts 1, which is entailment in this checkpoint; in GLUE entailment is 0."""
    checkpoint = BertForSequenceClassification.from_pretrained(
        model, id2label={0: "NOT_ENTAILMENT", 1: "ENTAILMENT"}, label2id={"NOT_ENTAILMENT": 0, "ENTAILMENT": 1}
    )
    with torch.no_grad():
        checkpoint.classifier.bias.copy_(torch.tensor([-9.0, 9.0]))
    folder = tmp_path / "checkpoint"
    checkpoint.save_pretrained(folder)
    argv = flags(str(folder), tmp_path / "out", "--task_name", "rte", "--data_dir", layout, "--tokenizer_name", model)
    metrics = glue.main([*argv, "--do_eval", "--do_predict"])
    assert metrics["eval_accuracy"] == pytest.approx(2 / 3)
    assert metrics["eval_loss"] == pytest.approx(18 / 3, abs=0.1)
    assert (tmp_path / "out" / "RTE.tsv").read_text() == "index\tprediction\n4\tentailment\n5\tentailment\n"


def test_the_report_of_a_checkpoint_with_its_own_label_order(layout: str, model: str, tmp_path: Path) -> None:
    """The store, the report and its texts number the labels as the model's head does."""
    labels = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    BertForSequenceClassification.from_pretrained(model, **labels).save_pretrained(tmp_path / "model")
    argv = flags(str(tmp_path / "model"), tmp_path / "out", "--task_name", "sst2", "--data_dir", layout, "--do_train")
    glue.main([*argv, "--tokenizer_name", model, "--report"])
    samples = pq.read_table(tmp_path / "out" / "_report" / "samples.parquet").to_pydict()
    assert samples["label"] == [1 - label for _, label in sentences(48)]


# --- whole runs ---


@pytest.mark.parametrize("trainer", ["plain", "lstsd"])
def test_classification(layout: str, model: str, tmp_path: Path, trainer: str) -> None:
    out = tmp_path / "out"
    argv = flags(model, out, "--task_name", "sst2", "--data_dir", layout, "--trainer", trainer)
    metrics = glue.main(
        [*argv, "--do_train", "--do_eval", "--do_predict", "--num_train_epochs", "10", "--logging_steps", "6"]
    )
    assert metrics["eval_accuracy"] == 1.0  # one word decides the label: any model that learns at all learns it
    assert (metrics["train_samples"], metrics["eval_samples"]) == (48, 16)
    assert results(out) == {**results(out, "train_results.json"), **results(out, "eval_results.json")}
    assert results(out).items() <= metrics.items()
    assert results(out, "trainer_state.json")["global_step"] == 60
    expected = "".join(f"{i}\t{i % 2}\n" for i in range(6))
    assert (out / "SST-2.tsv").read_text() == "index\tprediction\n" + expected
    saved = AutoConfig.from_pretrained(out)
    assert saved.id2label == {0: "negative", 1: "positive"}
    assert saved.label2id == {"negative": 0, "positive": 1}
    assert (out / "tokenizer.json").is_file()
    assert "GLUE SST2" in (out / "README.md").read_text(encoding="utf-8")
    assert (out / "_logits").is_dir() == (trainer == "lstsd")
    log = results(out, "trainer_state.json")["log_history"]
    assert any("long_term_loss" in entry for entry in log) == (trainer == "lstsd")


def test_without_teachers_both_trainers_do_the_same(layout: str, model: str, tmp_path: Path) -> None:
    task = ("--task_name", "sst2", "--data_dir", layout, "--do_train", "--do_eval")
    off = ("--long_term_weight", "0", "--short_term_weight", "0")
    plain = glue.main([*flags(model, tmp_path / "plain", *task), "--trainer", "plain"])
    lstsd = glue.main([*flags(model, tmp_path / "lstsd", *task), *off])
    assert plain["eval_loss"] == lstsd["eval_loss"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "lstsd"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("trainer", ["plain", "lstsd"])
def test_regression(layout: str, model: str, tmp_path: Path, trainer: str) -> None:
    argv = flags(model, tmp_path, "--task_name", "stsb", "--data_dir", layout, "--trainer", trainer)
    metrics = glue.main([*argv, "--do_train", "--do_eval", "--do_predict", "--num_train_epochs", "15"])
    assert metrics["eval_pearson"] > 0.8
    assert metrics["eval_combined_score"] == pytest.approx((metrics["eval_pearson"] + metrics["eval_spearmanr"]) / 2)
    lines = (tmp_path / "STS-B.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    bad, good, _ = (float(line.split("\t")[1]) for line in lines[1:])
    assert 0 <= bad < good <= 5


@pytest.mark.parametrize(("task", "first"), [("sst2", "the film was bad"), ("stsb", "the film was bad\nvery")])
def test_report(
    layout: str,
    model: str,
    tmp_path: Path,
    task: str,
    first: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []
    for name in ("of_classes", "of_scores"):
        real = getattr(measures, name)
        monkeypatch.setattr(measures, name, lambda *args, name=name, real=real: measured.append(name) or real(*args))
    argv = flags(model, tmp_path, "--task_name", task, "--data_dir", layout, "--do_train", "--max_train_samples", "40")
    config = write(tmp_path / "run.yaml", "report: true", "logits_retention: all")
    glue.main([str(config), *argv])
    page = tmp_path / "_report" / "report.html"
    lines = capsys.readouterr().out.splitlines()
    title = re.search("<h1>(.*)</h1>", page.read_text(encoding="utf-8"))
    assert title is not None
    assert lines[-2:] == [f"{title[1]}.", f"Report: {page}"]
    assert len(measured) == 1
    samples = pq.read_table(page.parent / "samples.parquet").to_pydict()
    assert samples["sample_id"] == list(range(40))
    assert samples["label"][:2] == ([0, 1] if task == "sst2" else [0, 5])
    packed = re.search(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    assert packed is not None
    data = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert data["epochs"] == [0, 1, 2]
    assert data["classes"] == (["negative", "positive"] if task == "sst2" else [])
    assert data["rows"]["text"][data["rows"]["id"].index(0)] == first
    assert "losses" in data["figures"]


def test_mnli_has_two_halves(layout: str, model: str, tmp_path: Path) -> None:
    argv = flags(model, tmp_path, "--task_name", "mnli", "--data_dir", layout)
    metrics = glue.main([*argv, "--do_train", "--do_eval", "--do_predict", "--max_eval_samples", "3"])
    saved = results(tmp_path, "eval_results.json")
    for name in ("eval_accuracy", "eval_loss", "eval_samples"):
        assert metrics[name] == saved[name]
        assert metrics[f"{name}_mm"] == saved[f"{name}_mm"]
    assert metrics["eval_samples_mm"] == 3
    card = ModelCard.load(tmp_path / "README.md")
    shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert (shown["accuracy"], shown["mm_accuracy"]) == (metrics["eval_accuracy"], metrics["eval_accuracy_mm"])
    matched = (tmp_path / "MNLI-m.tsv").read_text().split("\n")
    mismatched = (tmp_path / "MNLI-mm.tsv").read_text().split("\n")
    assert [line.split("\t")[0] for line in matched] == ["index", "0", ""]
    assert [line.split("\t")[0] for line in mismatched] == ["index", "7", "8", ""]
    assert {line.split("\t")[1] for line in mismatched[1:3]} <= set(TASKS["mnli"].labels)


@pytest.mark.parametrize(
    ("name", "header", "options"),
    [
        ("a b.csv", "words,liked,row", "--label_column liked --text_columns words"),
        ("a.csv", "text,label,uid", "--sample_id_column uid"),
        ("-a.csv", "text,-label,-uid", "--label_column=-label --sample_id_column=-uid --logits_dir=-store"),
        ("a.tsv", '"text"\t"label"\t"row"', "--tsv_quoting true"),
        ("a.csv", "text,label,row", "--logits_dir elsewhere/_store"),
    ],
)
def test_the_command_that_shows_what_looks_wrong_works(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    header: str,
    options: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(text, label, 7 * i + 3) for i, (text, label) in enumerate(sentences(24))]
    lines = ["\t".join(f'"{cell}"' for cell in row) if "\t" in header else ",".join(map(str, row)) for row in rows]
    write(Path(name), header, *lines)
    glue.main(flags(model, Path("my out"), f"--train_file={name}", "--do_train", "true", *options.split()))
    command = capsys.readouterr().out.splitlines()[-1].partition("To see them: ")[2]
    cli.main(shlex.split(command)[1:])
    assert "The report is my out/_report/report.html" in capsys.readouterr().out


def test_names_of_classes_that_a_terminal_would_obey(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ("a\nb", "\x1b[31mred")
    train = write(tmp_path / "a.csv", "text,label", *(f'{text},"{names[label]}"' for text, label in sentences(8)))
    glue.main(flags(model, tmp_path / "out", "--train_file", str(train), "--do_train", "true"))
    assert r"learns 8 rows (4 '\x1b[31mred', 4 'a\nb')." in capsys.readouterr().out


@pytest.mark.parametrize("trainer", ["plain", "lstsd"])
def test_the_users_own_files(model: str, tmp_path: Path, trainer: str) -> None:
    lines = [f"{text},{('no', 'yes')[label]},{i % 3}" for i, (text, label) in enumerate(sentences(60))]
    train = write(tmp_path / "train.csv", "words,liked,part", *lines)
    test = write(tmp_path / "test.csv", "words,part", "the film was dull,0", "the film was great,0", "very bad,1")
    argv = flags(model, tmp_path / "out", "--train_file", str(train), "--test_file", str(test), "--trainer", trainer)
    argv += ["--text_columns", "words", "--label_column", "liked", "--where", "part=0", "--validation_fraction", "0.2"]
    metrics = glue.main([*argv, "--do_train", "--do_eval", "--do_predict", "--num_train_epochs", "20"])
    assert (metrics["train_samples"], metrics["eval_samples"]) == (16, 4)
    assert metrics["eval_accuracy"] == 1.0
    assert (tmp_path / "out" / "predictions.tsv").read_text() == "index\tprediction\n0\tno\n1\tyes\n"


def test_a_cut_off_run_goes_on(layout: str, model: str, tmp_path: Path) -> None:
    task = (
        "--task_name",
        "sst2",
        "--data_dir",
        layout,
        "--do_train",
        "--trainer",
        "plain",
        "--save_strategy",
        "epoch",
    )
    first = glue.main(flags(model, tmp_path, *task))
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    resumed = glue.main(flags(model, tmp_path, *task, "--resume_from_checkpoint", str(tmp_path / "checkpoint-12")))
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(whole[name], weights[name]) for name in whole)
    assert resumed["train_loss"] != first["train_loss"]  # the mean over the resumed run's own steps
    # "true" takes the last checkpoint of the folder. It is the end of the run: no step is left.
    last = glue.main(flags(model, tmp_path, *task, "--resume_from_checkpoint", "true"))
    assert last["train_loss"] == 0
    anew = glue.main(flags(model, tmp_path, *task, "--resume_from_checkpoint", "false"))
    assert anew["train_loss"] == first["train_loss"]


def test_the_losses_are_on_the_progress_bar(
    layout: str, model: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train", "--logging_steps", "6")
    glue.main([*argv, "--disable_tqdm", "false"])
    bars = [line for line in re.split(r"[\r\n]", capfd.readouterr().err) if "18/18" in line]
    assert re.search(r" loss=\d.*, base_loss=\d.*, long_term_loss=\d.*, short_term_loss=\d", bars[-1])
    assert re.search(r" honest_accuracy=\d.*, memorised=-?\d", bars[-1])


def test_push_to_hub(layout: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushes: list[dict[str, Any]] = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: None)
    monkeypatch.setattr(glue.LSTSDTrainer, "push_to_hub", lambda self, **arguments: pushes.append(arguments))
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train", "--push_to_hub")
    glue.main(argv)
    # The folder that the model came from is not named.
    assert pushes[-1] == {
        "tasks": "text-classification",
        "language": "en",
        "dataset_tags": "glue",
        "dataset_args": "sst2",
        "dataset": "GLUE SST2",
    }


def test_model_card_names_the_hubs_model() -> None:
    model_args = ModelArguments(model_name_or_path="google-bert/bert-base-uncased")
    card = glue.model_card_arguments(model_args, DataArguments(train_file="x.csv"))
    assert card == {"tasks": "text-classification", "finetuned_from": "google-bert/bert-base-uncased"}


def test_predicted() -> None:
    logits = np.array([[0.5, 2.0], [1.0, -1.0]])
    assert glue.predicted(logits, is_regression=False).tolist() == [1, 0]
    assert glue.predicted((logits, np.zeros(2)), is_regression=False).tolist() == [1, 0]
    assert glue.predicted(logits[:, :1], is_regression=True).tolist() == [0.5, 1.0]


@real_glue
def test_two_processes(model: str, tmp_path: Path) -> None:
    argv = flags(model, tmp_path, "--task_name", "mrpc", "--data_dir", str(GLUE), "--do_train", "--do_eval")
    argv += ["--do_predict", "--max_train_samples", "24", "--max_eval_samples", "9", "--max_predict_samples", "5"]
    argv += ["--report", "true"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(ROOT / "scripts" / "run_glue.py"), *argv],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("***** eval metrics *****") == 1
    assert done.stdout.count("Report: ") == 1
    assert len(np.load(tmp_path / "_report" / "pred_probs.npy")) == 24
    assert results(tmp_path)["train_samples"] == 24
    assert results(tmp_path)["eval_samples"] == 9
    assert len((tmp_path / "MRPC.tsv").read_text().splitlines()) == 6
    state = results(tmp_path, "trainer_state.json")
    assert state["global_step"] == 6  # 24 rows, 3 epochs, 2 processes of 8 rows: two steps an epoch


def test_it_says_what_it_will_do_and_what_it_found(
    model: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train", "true")
    glue.main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "BertForSequenceClassification learns 48 rows (24 negative, 24 positive).",
        "3 epochs. Teachers: long-term from epoch 2, short-term from epoch 1.",
        f"Predictions: {tmp_path}/_logits, 0 kB for each epoch that is kept.",
    ]
    assert re.fullmatch(rf"(\d+|None) of 48 labels looks? wrong\. To see them: lstsd report {tmp_path}", lines[-1])

    glue.main([*argv, "--learning_rate", "1e-30"])  # it goes on guessing one class, so half of the labels look wrong
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("so it has learnt too little to judge them.")
    assert lines[-1].startswith("24 of 48 labels look wrong.")

    glue.main([*argv, "--trainer", "plain", "--max_steps", "2"])
    assert "2 steps, with transformers.Trainer." in capsys.readouterr().out.splitlines()
    glue.main(
        [*argv[:-4], "--task_name", "stsb", "--data_dir", layout, "--do_train", "true", "--short_term_weight", "0"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "BertForSequenceClassification learns 48 rows (scores from 0 to 5)."
    assert lines[1] == "3 epochs. Teachers: long-term from epoch 2."
    assert re.fullmatch(rf"(\d+|None) of 48 scores looks? wrong\. To see them: lstsd report {tmp_path}", lines[-1])


def test_the_plan_of_any_number_of_epochs_takes_no_time(layout: str, tmp_path: Path, model: str) -> None:
    argv = flags(model, tmp_path, "--task_name", "sst2", "--data_dir", layout, "--do_train", "true")
    job = prepare([*argv, "--num_train_epochs", "1e300"])
    line = words.plan(job, glue.load_model(job)).splitlines()[1]
    assert line.endswith("Teachers: long-term from epoch 2, short-term from epoch 1.")
