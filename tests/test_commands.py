"""Whatever a user gives to `lstsd train`, an error is one line and exit code 2, and Ctrl-C one line and 130."""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.integrations import unset_hf_deepspeed_config

from lstsd_hf import LSTSDConfig, cli
from lstsd_hf.glue import run as glue
from lstsd_hf.glue.callbacks import InterruptCallback
from lstsd_hf.glue.errors import errors_of_a_run
from lstsd_hf.glue.resume import how_to_resume
from toys import BAD, GOOD, config, rows, tiny_bert

ROWS = [f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]},{i % 2}" for i in range(48)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_deepspeed_left() -> Iterator[None]:
    """transformers keeps a DeepSpeed configuration for the whole process, even one that was refused."""
    yield
    unset_hf_deepspeed_config()


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("data") / "train.csv", "text,label", *ROWS))


@pytest.fixture
def base(model: str, train_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a run that works; a later flag overrides an earlier one."""
    monkeypatch.chdir(tmp_path)
    settings = "--do_train --use_cpu --disable_tqdm true --save_strategy no --num_train_epochs 2"
    return ["--model_name_or_path", model, "--train_file", train_file, "--output_dir", "out", *settings.split()]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs `lstsd train`, expects exit code 2 and an error as the last line on stderr, and returns that error."""

    def run(argv: list[str], *, alone: bool = False) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main(["train", *argv])
        err = capfd.readouterr().err
        assert leaving.value.code == 2
        assert "Traceback" not in err
        lines = err.splitlines()
        assert lines[-1].startswith("lstsd train: error: ")
        assert len(lines) == 1 or not alone
        return lines[-1].removeprefix("lstsd train: error: ")

    return run


# These are refused before anything is read.
FLAGS = [
    ("--train_flie x.csv", "unknown flag '--train_flie'. Did you mean 'train_file'?"),
    ("--device cuda", "unknown flag '--device'."),
    ("--learning\u2013rate 1", "unknown flag '--learning\u2013rate'. Did you mean 'learning_rate'?"),
    ("\u2014seed 1", "'\u2014seed' begins with '\u2014': expected '--'"),
    ("\u2013\u2013bf16=true", "'\u2013\u2013bf16=true' begins with '\u2013\u2013'"),
    ("-\u2212do-eval", "'-\u2212do-eval' begins with '-\u2212'"),
    ("--output_dir o\udce9", "output_dir='o\\udce9': expected the name of a folder in UTF-8."),
    ("--bf16 maybe", "argument --bf16: Truthy value expected: got maybe"),
    ("--seed one", "invalid int value: 'one'"),
    ("--seed -1", "seed=-1: expected 0 to 4294967295."),
    ("--seed 4294967296", "seed=4294967296: expected 0 to 4294967295."),
    ("--data_seed -1", "data_seed=-1: expected 0 to 4294967295."),
    ("--max_steps 99999999999999999999", "max_steps=99999999999999999999: expected a number of at most 64 bits."),
    ("--max_steps 0", "max_steps=0: expected at least 1, or -1"),
    ("--max_steps -2", "max_steps=-2: expected at least 1, or -1"),
    ("--num_train_epochs -1", "num_train_epochs=-1.0: expected a number above 0."),
    ("--num_train_epochs 0", "num_train_epochs=0.0: expected a number above 0."),
    ("--num_train_epochs inf", "num_train_epochs=inf: expected a finite number."),
    ("--learning_rate nan", "learning_rate=nan: expected a finite number."),
    ("--learning_rate -1", "learning_rate=-1.0: expected at least 0."),
    ("--weight_decay -1", "weight_decay=-1.0: expected at least 0."),
    ("--max_grad_norm nan", "max_grad_norm=nan: expected a finite number."),
    ("--label_smoothing_factor 1.5", "label_smoothing_factor=1.5: expected 0 to 1."),
    ("--neftune_noise_alpha -1", "neftune_noise_alpha=-1.0: expected at least 0."),
    ("--warmup_steps -1", "warmup_steps"),
    ("--adam_beta1 2", "Invalid beta parameter"),
    ("--per_device_train_batch_size 0", "per_device_train_batch_size=0: expected at least 1."),
    ("--per_device_eval_batch_size -1", "per_device_eval_batch_size=-1: expected at least 1."),
    ("--gradient_accumulation_steps 0", "gradient_accumulation_steps=0: expected at least 1."),
    ("--eval_accumulation_steps 0", "eval_accumulation_steps=0: expected at least 1."),
    ("--dataloader_num_workers -1", "dataloader_num_workers=-1: expected at least 0."),
    ("--preprocessing_num_workers 0", "preprocessing_num_workers=0: expected at least 1."),
    ("--max_seq_length 0", "max_seq_length=0: expected at least 1."),
    ("--max_train_samples -1", "max_train_samples=-1: expected at least 1."),
    ("--validation_fraction -0.5", "validation_fraction=-0.5: expected a number between 0 and 1."),
    ("--validation_fraction nan", "validation_fraction=nan: expected a finite number."),
    ("--logging_steps -5", "logging_steps=-5.0: expected a number above 0."),
    ("--logging_steps inf", "logging_steps"),
    ("--save_strategy steps --save_steps 0", "save_steps=0.0: expected a number above 0."),
    ("--eval_strategy steps --eval_steps -1", "eval_steps=-1.0: expected a number above 0."),
    ("--batch_eval_metrics true", "leave out batch_eval_metrics"),
    ("--optim adamw_of_mine", "argument --optim: invalid choice: 'adamw_of_mine'"),
    ("--optim adamw_8bit", "bitsandbytes"),
    ("--optim_args learning", "optim='adamw_torch_fused' with optim_args='learning'"),
    ("--lr_scheduler_type stairs", "argument --lr_scheduler_type"),
    ('--lr_scheduler_kwargs {"steps":1}', "lr_scheduler_kwargs={'steps': 1}: TypeError"),
    ("--lr_scheduler_kwargs [1]", "lr_scheduler_kwargs='[1]': expected a JSON object."),
    ("--lr_scheduler_type reduce_lr_on_plateau", "requires an eval strategy"),
    ('--accelerator_config {"split":true}', "AcceleratorConfig.__init__() got an unexpected keyword argument 'split'"),
    ("--accelerator_config nowhere.json", "nowhere.json: No such file or directory"),
    ("--accelerator_config /dev/null", "A JSON file of the training arguments (accelerator_config, deepspeed ...)"),
    ("--torch_compile_mode fast", "torch_compile: RuntimeError: Unrecognized mode=fast"),
    ("--report_to paper", "report_to='paper' is not installed here: expected one of "),
    ("--deepspeed nowhere.json", "deepspeed"),
    ("--mini_generation_epochs 0", "mini_generation_epochs=0 is not allowed: expected an integer of at least 1."),
    ("--temperature 1e300", "temperature=1e+300 is not allowed: expected a finite number above 0: 1e-06 to 1e+06."),
    ("--logits_dtype float8", "argument --logits_dtype"),
    ("--logits_dir out/logits", "lies inside output_dir='out' under 'logits'"),
    ("--logits_dir=", "logits_dir='' is not allowed"),
    ("--output_dir=", "output_dir is empty"),
    ("--text_columns text text", "expected one or two columns, each once."),
    ("--text_columns text label", "expected columns other than the label's."),
    ("--sample_id_column input_ids", "sample_id_column='input_ids' is the name of another column"),
    ("--sample_id_column label", "sample_id_column='label' is the name of another column"),
    ("--sample_id_column=", "sample_id_column='' is not allowed: expected the name of a column."),
    ("--where text", "where='text': expected COLUMN=VALUE."),
    ("--model_name_or_path=", "model_name_or_path is missing"),
    ("--model_name_or_path package://nowhere/x", "no package 'nowhere' is installed here."),
    ("--resume_from_checkpoint true", "No valid checkpoint found in output directory (out)"),
    ("--resume_from_checkpoint nowhere", "resume_from_checkpoint='nowhere': no such folder"),
    ("--resume_from_checkpoint=", "resume_from_checkpoint='': no such folder"),
    ("--trainer plain --resume_from_checkpoint true", "No valid checkpoint found in output directory (out)"),
    ("--trainer plain --report", "report=True goes with trainer='lstsd', found 'plain'"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_flags_that_are_refused(base: list[str], refused: Callable[..., str], flags: str, message: str) -> None:
    assert message in refused([*base, *flags.split(" ")], alone=True)
    assert not Path("out").exists()


def test_a_problem_type_other_than_the_labels(base: list[str], refused: Callable[..., str]) -> None:
    classes = "expected 'single_label_classification', because the labels are classes. Leave it out"
    line = refused([*base, "--problem_type", "regression"], alone=True)
    assert line == (
        f"problem_type='regression': {classes}; if the labels are scores, set label_kind (--label_kind scores)."
    )
    line = refused([*base, "--problem_type", "multi_label_classification"], alone=True)
    assert line.endswith(f"{classes}, or use LSTSDTrainer: this command learns one class or one score for each row.")
    scores = [*base, "--problem_type", "regression", "--label_kind", "scores"]  # as the first line advises
    line = refused([*scores, "--problem_type", "single_label_classification"], alone=True)
    assert line.endswith(
        "because the labels are scores. Leave it out; if the labels are classes, set label_kind "
        "(--label_kind classes)."
    )
    assert not Path("out").exists()
    cli.main(["train", *scores])


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (None, "Nothing to do: expected a CONFIG, or flags. See lstsd train --help."),
        ("--output_dir", "output_dir is missing: expected the folder that the run writes to. Give --output_dir."),
        ("--model_name_or_path", "model_name_or_path is missing"),
        ("--train_file", "Expected either task_name or train_file, found neither."),
    ],
)
def test_what_is_left_out(base: list[str], refused: Callable[..., str], left_out: str | None, message: str) -> None:
    argv = [] if left_out is None else base
    if left_out in base:
        del argv[base.index(left_out) : base.index(left_out) + 2]
    assert message in refused(argv, alone=True)


def test_files_in_the_place_of_folders(base: list[str], refused: Callable[..., str], train_file: str) -> None:
    line = refused([*base, "--output_dir", train_file], alone=True)
    assert line == f"output_dir={train_file!r} is a file: expected a folder, or a name that is free."
    line = refused([*base, "--logits_dir", train_file], alone=True)
    assert line == f"logits_dir={train_file!r} is a file: expected a folder, or a name that is free."
    Path("dangling").symlink_to("nowhere")
    for name in ("output_dir", "logits_dir"):
        line = refused([*base, f"--{name}", "dangling"], alone=True)
        assert line == f"{name}='dangling' is a link to nothing: expected a folder, or a name that is free."
    line = refused([*base, "--logits_dir", "/"], alone=True)
    assert line.endswith(
        "'/' is the root of all folders: expected a folder for the store alone, such as 'out/_logits'."
    )
    assert refused([*base, "--output_dir", f"{train_file}/out"]) == f"{train_file}/out: Not a directory"
    task = ["--model_name_or_path", "m", "--task_name", "rte", "--output_dir", "out", "--do_train"]
    assert "expected a folder 'RTE' in data_dir" in refused([*task, "--data_dir", train_file], alone=True)


@pytest.mark.parametrize("name", [".", "nowhere.csv", "data.xlsx"])
def test_what_is_no_training_file(base: list[str], refused: Callable[..., str], name: str) -> None:
    write(Path("data.xlsx"), "x")
    assert name in refused([*base, "--train_file", name])


def test_a_folder_that_holds_something_else(base: list[str], refused: Callable[..., str]) -> None:
    Path("mine").mkdir()
    write(Path("mine/letter.txt"), "kept")
    assert "mine holds something that is not a logits store" in refused([*base, "--logits_dir", "mine"])
    assert Path("mine/letter.txt").read_text() == "kept\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("all_results.json", b"", "cannot be read: Expecting value"),
        ("all_results.json", b'{"epoch": 1', "cannot be read: Expecting ',' delimiter"),
        ("all_results.json", b"[1]", "cannot be read: it is no JSON object"),
        ("all_results.json", None, "cannot be read: not a regular file"),
        ("README.md", b"---\n[\n---\nmine", "cannot be read as a model card: while parsing"),
        ("README.md", b"\xff\xfe", "cannot be read as a model card: 'utf-8' codec"),
        ("README.md", None, "cannot be read as a model card: not a regular file"),
    ],
)
def test_what_the_end_of_a_run_could_not_read_is_refused_before_training(
    base: list[str], refused: Callable[..., str], name: str, content: bytes | None, message: str
) -> None:
    """As a run that was killed leaves a file, or a full disk."""
    Path("out").mkdir()
    if content is None:
        os.mkfifo(f"out/{name}")
    else:
        Path("out", name).write_bytes(content)
    line = refused(base, alone=True)
    assert line.startswith(f"out/{name}, ")
    assert message in line
    assert not Path("out/_logits").exists()
    Path("out", name).rename("aside")  # as the line advises
    cli.main(["train", *base])


def test_a_link_where_the_report_goes_is_refused_before_training(base: list[str], refused: Callable[..., str]) -> None:
    out = Path(base[base.index("--output_dir") + 1])
    out.mkdir(exist_ok=True)
    (out / "_report").symlink_to(out.parent)
    assert "_report is a link" in refused([*base, "--report", "true"], alone=True)
    assert not (out / "_logits").exists()


# --- ids from the file ---


@pytest.mark.parametrize(
    ("ids", "message"),
    [(lambda i: f"x{i}", "data row 1: expected a sample id"), (lambda i: i // 2, "data row 2: the sample id 0")],
)
def test_own_ids_that_name_no_row_or_two(
    base: list[str], refused: Callable[..., str], ids: Callable[[int], Any], message: str
) -> None:
    path = write(Path("own.csv"), "text,label,sample_id", *(f"{row},{ids(i)}" for i, row in enumerate(ROWS)))
    argv = [*base, "--train_file", str(path), "--text_columns", "text"]
    line = refused(argv)
    assert message in line
    assert "--sample_id_column" in line
    cli.main(["train", *argv, "--sample_id_column", "row"])  # as the line advises


def test_own_ids_of_any_size(base: list[str]) -> None:
    lines = (f"{row},{1_500_000_000_000_000_000 + i}" for i, row in enumerate(ROWS))
    path = write(Path("own.csv"), "text,label,sample_id", *lines)
    assert glue.main([*base, "--train_file", str(path)])["train_samples"] == len(ROWS)


# --- configs ---

CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "aliases without end": (
        "lr_scheduler_kwargs: {a: &a0 {x: 1}"
        + "".join(f", k{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 60))
        + "}",
        "line 1: expected at most 20 levels and 10,000 values, found more",
    ),
    "an alias of itself": ("lr_scheduler_kwargs: &a {b: *a}", "expected at most 20 levels"),
    "5,000 brackets": ("[" * 5000, "nested too deeply: expected a YAML mapping of settings"),
    "deep mappings": ("lr_scheduler_kwargs: " + "{a: " * 3000, "nested too deeply"),
    "twice": ("seed: 1\ntask_name: rte\nseed: 2", "line 3: the key 'seed' a second time, after line 1"),
    "twice below": ("lr_scheduler_kwargs:\n  a: 1\n  a: 2", "line 3: the key 'a' a second time, after line 2"),
    "a date as a number": ("learning_rate: 2024-01-01", "invalid float value: '2024-01-01'"),
    "a date in a mapping": (
        "lr_scheduler_kwargs: {a: 2024-01-01}",
        "lr_scheduler_kwargs={'a': '2024-01-01'}",
    ),
    "a list as a number": ("learning_rate: [1, 2]", "line 1: expected one value for 'learning_rate'"),
    "a mapping as a number": ("learning_rate: {a: 1}", "invalid float value"),
    "a list of lists": ("text_columns: [[a], b]", "line 1: expected one value, found a list or a mapping"),
    "flags in a list": ("text_columns: [--do_train]", "expected values for 'text_columns' that do not begin"),
    "a mapping as a key": ("? {a: b}\n: 1", "line 1: expected one value, found a list or a mapping"),
    "infinity": ("lr_scheduler_kwargs: {a: .inf}", "line 1: expected a finite number, found .inf"),
    "a tag": ("task_name: !!python/object/apply:os.system [ls]", "line 1: expected a value without a tag, found"),
    "a wrong tag": ("lr_scheduler_kwargs: {a: !!int many}", "line 1: 'many' is no int"),
    "two documents": ("seed: 1\n---\nseed: 2", "not YAML: expected a single document"),
    "a tab": ("task_name:\trte\n\tseed: 1", "not YAML: while scanning"),
    "a NUL byte": (b"task_name: r\0te", "not YAML: unacceptable character #x0000"),
    "no UTF-8": (b"\xff\xfet\0", "not YAML: 'utf-8' codec"),
    "a text": ("mrpc", "expected a YAML mapping of settings, found one value"),
    "huge": ("a: " + "x" * 200_000, "expected a YAML file of at most 100,000 bytes, found more"),
    "an undefined alias": ("seed: *x", "not YAML: found undefined alias 'x'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_are_refused(base: list[str], refused: Callable[..., str], name: str) -> None:
    content, message = CONFIGS[name]
    Path("run.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.monotonic()
    assert message in refused(["run.yaml", *base], alone=True)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("path", "message"), [("/", "Is a directory"), ("/dev/zero", "at most 100,000 bytes")])
def test_what_is_no_config(refused: Callable[..., str], path: str, message: str) -> None:
    assert message in refused([path], alone=True)


def test_an_alias_of_a_few_values_is_yaml(base: list[str]) -> None:
    write(
        Path("run.yaml"),
        "logging_steps: &steps 3",
        "save_steps: *steps",
        "lr_scheduler_type: cosine_with_min_lr",
        "lr_scheduler_kwargs: {min_lr: 1e-6}",
    )
    assert glue.main(["run.yaml", *base])["epoch"] == 2


# --- models ---


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)

    return change


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "broken config": (with_file("config.json", b"{"), "no model's configuration can be read from it"),
    "config of bytes": (with_file("config.json", bytes(range(256))), "no model's configuration can be read from it"),
    "deep config": (with_file("config.json", b"[" * 100_000), "no model's configuration can be read from it"),
    "no config": (with_file("config.json", None), "no model's configuration can be read from it"),
    "unknown kind": (with_config(model_type="oracle"), "no model's configuration can be read from it"),
    "no heads": (with_config(num_attention_heads=0), "the model cannot be loaded: ZeroDivisionError"),
    "another size": (with_config(hidden_size=32), "--ignore_mismatched_sizes true"),
    "cut weights": (lambda folder: os.truncate(folder / "model.safetensors", 500), "the model cannot be loaded"),
    "no weights": (with_file("model.safetensors", None), "the model cannot be loaded: Error no file named"),
    "broken tokenizer": (with_file("tokenizer.json", b"{"), "no tokenizer can be read from it"),
    "endless length": (
        with_file("tokenizer_config.json", b'{"model_max_length": "long"}'),
        "model_max_length is 'long': expected a number.",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_folders_that_are_refused(base: list[str], refused: Callable[..., str], model: str, name: str) -> None:
    change, message = MODELS[name]
    shutil.copytree(model, "changed")
    change(Path("changed"))
    line = refused([*base, "--model_name_or_path", "changed"])
    assert line.startswith("changed: ")
    assert message in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 8}, "the model knows 8 tokens"),
        ({"max_position_embeddings": 4}, "Set max_seq_length=4, or cut the rows"),
    ],
)
def test_rows_that_a_model_has_no_embedding_for(
    base: list[str], refused: Callable[..., str], model: str, changes: dict[str, int], message: str
) -> None:
    shutil.copytree(model, "changed")
    with_config(**changes)(Path("changed"))
    assert message in refused([*base, "--model_name_or_path", "changed", "--ignore_mismatched_sizes"])


def save_head(folder: str, model: str, labels: int) -> None:
    """Saves a checkpoint of a BERT of `model`'s shape, with a head of `labels` outputs."""
    shutil.copytree(model, folder)
    set_seed(0)
    BertForSequenceClassification(BertConfig.from_pretrained(model, num_labels=labels)).save_pretrained(folder)


def test_a_model_with_another_head(base: list[str], refused: Callable[..., str], model: str) -> None:
    save_head("three", model, 3)
    argv = [*base, "--model_name_or_path", "three"]
    line = refused(argv)
    assert "three: the model cannot be loaded: expected weights of this run's shapes, with 2 outputs." in line
    assert "--ignore_mismatched_sizes true" in line
    assert glue.main([*argv, "--ignore_mismatched_sizes", "true"])["epoch"] == 2  # as the line advises


@pytest.mark.parametrize("end", ["<end>", None])
def test_a_model_without_a_padding_token_pads_with_its_end(
    base: list[str], refused: Callable[..., str], end: str | None
) -> None:
    words = ["<unk>", "<end>", "the", "film", "was", *GOOD, *BAD]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=end).save_pretrained("gpt")
    set_seed(0)
    sizes = {"vocab_size": len(words), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    GPT2Model(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained("gpt")
    write(Path("ragged.csv"), "text,label", "good film,1", "the film was bad,0", "bad,0", "the good,1")
    argv = [*base, "--model_name_or_path", "gpt", "--train_file", "ragged.csv"]
    if end is None:
        assert "the tokenizer has no padding token and no end token" in refused(argv)
    else:
        assert glue.main(argv)["train_samples"] == 4
        assert json.loads(Path("out/config.json").read_text())["pad_token_id"] == 1


# --- in training ---


def test_an_unknown_metric(base: list[str], refused: Callable[..., str]) -> None:
    argv = [*base, "--validation_fraction", "0.25", "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    argv += ["--load_best_model_at_end", "true", "--metric_for_best_model"]
    line = refused([*argv, "acuracy"])
    assert line.startswith("metric_for_best_model='acuracy': expected one of accuracy, loss, ")
    assert line.endswith("Did you mean 'accuracy'?")
    assert glue.main([*argv, "accuracy"])["epoch"] == 2
    assert glue.main([*argv, "eval_loss"])["epoch"] == 2


def test_a_diverged_run_with_a_report(base: list[str], refused: Callable[..., str]) -> None:
    # The first steps of the first epoch are finite: if the run kept that epoch, there would be something to report.
    settings = ["--learning_rate", "1e30", "--num_train_epochs", "3", "--logits_retention", "needed"]
    line = refused([*base, *settings, "--report"])
    assert "no sample has a finite prediction" in line
    assert Path("out/model.safetensors").is_file()
    assert Path("out/README.md").is_file()


def test_no_batch_is_left(base: list[str], refused: Callable[..., str]) -> None:
    line = refused([*base, "--dataloader_drop_last", "true", "--per_device_train_batch_size", "64"])
    assert line.startswith("dataloader_drop_last=True leaves no batch of 48 rows: expected at least 64.")


@pytest.fixture(scope="module")
def saved(model: str, train_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a checkpoint of its first epoch."""
    out = tmp_path_factory.mktemp("saved") / "out"
    argv = ["--model_name_or_path", model, "--train_file", train_file, "--output_dir", str(out), "--do_train"]
    glue.main([*argv, "--use_cpu", "--disable_tqdm", "true", "--save_strategy", "epoch", "--num_train_epochs", "1"])
    return out


@pytest.fixture
def checkpoint(base: list[str], saved: Path) -> Path:
    """The checkpoint of a run in the folder `out`."""
    shutil.copytree(saved, "out")
    return Path("out/checkpoint-6")


@pytest.mark.parametrize("trainer", ["lstsd", "plain"])
def test_a_checkpoint_of_another_head(
    base: list[str], refused: Callable[..., str], checkpoint: Path, trainer: str
) -> None:
    path = write(Path("three.csv"), "text,label", *(f"{row}{i % 3}" for i, row in enumerate(ROWS)))
    argv = [*base, "--trainer", trainer, "--train_file", str(path), "--resume_from_checkpoint", str(checkpoint)]
    line = refused(argv)
    assert f"{checkpoint}/model.safetensors: classifier.bias has the shape [2], and [" in line


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "_logits/store.json"]
)
def test_a_checkpoint_with_a_damaged_file(
    base: list[str], refused: Callable[..., str], checkpoint: Path, name: str
) -> None:
    os.truncate(checkpoint / name, 20)
    line = refused([*base, "--resume_from_checkpoint", str(checkpoint)])
    assert f"{checkpoint}/{name} is damaged" in line


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("held", [{}, {"param_groups": [1], "state": 5}, [1], 5, torch.zeros(3), Path("x")])
def test_a_checkpoint_with_a_file_of_something_else(
    base: list[str], refused: Callable[..., str], checkpoint: Path, name: str, held: Any
) -> None:
    torch.save(held, checkpoint / name)
    line = refused([*base, "--resume_from_checkpoint", str(checkpoint)])
    assert f"{checkpoint}/{name} is damaged" in line
    assert not Path("out/_logits-1").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_with_a_pipe(base: list[str], refused: Callable[..., str], checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    line = refused([*base, "--resume_from_checkpoint", str(checkpoint)])
    assert line == f"{checkpoint}/{name}: not a regular file"


@pytest.mark.parametrize(("optim", "lacks"), [("sgd", "momentum"), ("adafactor", "beta1")])
def test_a_checkpoint_of_another_optimizer(
    base: list[str], refused: Callable[..., str], checkpoint: Path, optim: str, lacks: str
) -> None:
    argv = [*base, "--resume_from_checkpoint", str(checkpoint)]
    line = refused([*argv, "--optim", optim])
    assert (
        f"{checkpoint}/optimizer.pt is the state of another optimizer than optim={optim!r} (KeyError: '{lacks}')"
        in line
    )
    assert not Path("out/_logits-1").exists()
    cli.main(["train", *argv, "--optim", "adamw_torch"])  # which shares its state with the default


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        pickle.UnpicklingError("bad"),
        SafetensorError("bad"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
        Exception("No space left on device (os error 28)"),
        HfHubHTTPError.__bases__[0]("Connection refused"),
    ],
)
def test_what_a_run_can_meet_is_one_line(
    base: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "train", fail)
    assert str(error) in refused([*base, "--trainer", "plain"])


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), KeyError("x"), TypeError("x"), ZeroDivisionError("x"), Exception("x")]
)
def test_faults_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as found, errors_of_a_run():
        raise error
    assert found.value is error


class Press(TrainerCallback):
    """Presses Ctrl-C in the middle of the third step, or of the first batch of an evaluation."""

    def __init__(self, *, times: int = 1, evaluating: bool = False) -> None:
        self.times = times
        self.evaluating = evaluating
        self.log: list[str] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and not self.evaluating:
            self.press()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log.append("batch")
        if self.evaluating and len(self.log) == 1:
            self.press()

    def press(self) -> None:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        self.log.append("goes on")


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt: a test suite in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("times", "steps"), [(1, 3), (2, 2)])
def test_ctrl_c_ends_a_run_between_two_steps_and_a_second_one_at_once(
    tmp_path: Path, ctrl_c_raises: None, times: int, steps: int
) -> None:
    press, interrupts = Press(times=times), InterruptCallback()
    trainer = Trainer(tiny_bert(), config(tmp_path), train_dataset=rows(32), callbacks=[press, interrupts])
    with pytest.raises(KeyboardInterrupt), interrupts:
        trainer.train()
    assert trainer.state.global_step == steps
    assert press.log == ["goes on"] * (times == 1)


def test_ctrl_c_ends_an_evaluation_after_its_batch(tmp_path: Path, ctrl_c_raises: None) -> None:
    interrupts = InterruptCallback()
    press = Press(evaluating=True)
    args = config(tmp_path, per_device_eval_batch_size=4)
    trainer = Trainer(tiny_bert(), args, eval_dataset=rows(32), callbacks=[press, interrupts])
    with pytest.raises(KeyboardInterrupt), interrupts:
        trainer.evaluate()
    assert press.log == ["batch", "goes on"]


def test_ctrl_c_after_the_last_step_is_not_lost(ctrl_c_raises: None) -> None:
    press = Press()
    with pytest.raises(KeyboardInterrupt), InterruptCallback():
        press.press()
    assert press.log == ["goes on"]


def test_an_error_after_ctrl_c_is_a_consequence_of_it(ctrl_c_raises: None) -> None:
    def fail(presses: int) -> None:
        Press(times=presses).press()
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(KeyboardInterrupt) as found, InterruptCallback():
        fail(1)
    assert str(found.value.__context__) == "Connection closed by peer"
    with pytest.raises(RuntimeError), InterruptCallback():
        fail(0)


def test_a_forked_worker_leaves_ctrl_c_to_the_process_that_trains(ctrl_c_raises: None) -> None:
    with InterruptCallback():
        worker = os.fork()
        if worker == 0:
            try:
                for _ in range(3):
                    signal.raise_signal(signal.SIGINT)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0


def test_who_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptCallback():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_in_a_thread_has_no_say_in_ctrl_c(ctrl_c_raises: None) -> None:
    found = []

    def run() -> None:
        with InterruptCallback():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


# --- real processes ---


@pytest.fixture
def lstsd() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts the command in a process of its own, which does not outlive the test."""
    started = []

    def start(*argv: str, file_size: int | None = None) -> "subprocess.Popen[str]":
        def prepare() -> None:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # a test suite in the background ignores it, and so would its children
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "lstsd_hf", *argv],
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=prepare,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(path: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not Path(path).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_of_its_own(lstsd: Callable[..., Any]) -> None:
    process = lstsd("train", "--seed", "x")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err == "lstsd train: error: argument --seed: invalid int value: 'x'\n"


def test_ctrl_c_while_python_imports(tmp_path: Path) -> None:
    """The interrupt comes at the first import of numpy, which a file of that name stands for."""
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "lstsd_hf", "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "lstsd: interrupted.\n")


def test_ctrl_c_says_how_to_resume(base: list[str], lstsd: Callable[..., Any]) -> None:
    argv = ["train", *base, "--save_strategy", "steps", "--save_steps", "6", "--num_train_epochs", "1000"]
    argv += ["--disable_tqdm", "false", "--dataloader_num_workers", "1"]
    argv += ["--per_device_train_batch_size", "1"]  # an epoch of 48 steps: step 12 is not near the start of a worker
    process = lstsd(*argv)
    wait_for("out/checkpoint-12/trainer_state.json", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("lstsd train: interrupted. ")
    assert "--resume_from_checkpoint true goes on from out/checkpoint-" in line
    # As the line advises. The latest checkpoint may be of any step.
    steps = max(int(path.name.split("-")[1]) for path in Path("out").glob("checkpoint-*")) + 6
    resumed = glue.main([*argv[1:], "--resume_from_checkpoint", "true", "--max_steps", str(steps)])
    assert resumed["epoch"] == steps / 48


def test_the_advice_after_ctrl_c_works(base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the newest checkpoint is half written, and where none has predictions."""

    def advice(*more: str) -> str:
        argv = [*base, "--validation_file", base[3], "--do_eval", *more]
        with monkeypatch.context() as patch:
            patch.setattr(glue, "evaluate", interrupt)
            with pytest.raises(KeyboardInterrupt) as stop:
                glue.main(argv)
        return str(stop.value)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    models = ["--save_strategy", "epoch", "--save_only_model", "true"]
    line = advice(*models)
    assert line.endswith("--resume_from_checkpoint true --resume_without_logits true goes on from out/checkpoint-12.")
    shutil.rmtree("out/checkpoint-12")
    Path("out/checkpoint-12").mkdir()
    line = advice("--do_train", "false")
    assert line == "Nothing was trained, so start again."
    args, record = LSTSDConfig("out", do_train=True), re.compile("with (.*) goes on from out/checkpoint-6")
    assert record.search(how_to_resume(args, records=False))[1] == "--resume_from_checkpoint true"
    flags = record.search(how_to_resume(args, records=True))[1]
    cli.main(["train", *base, *models, *flags.split()])


def test_ctrl_c_before_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupt(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(glue, "prepare", interrupt)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handler
    with pytest.raises(SystemExit) as leaving:
        cli.main(["train", "mrpc"])
    assert leaving.value.code == 130
    line = "Nothing was trained. --resume_from_checkpoint true goes on from an earlier checkpoint."
    assert capsys.readouterr().err == f"lstsd train: interrupted. {line}\n"


def test_ctrl_c_before_the_first_checkpoint(base: list[str], lstsd: Callable[..., Any]) -> None:
    process = lstsd("train", *base, "--num_train_epochs", "100000")
    wait_for("out/_logits/store.json", process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("lstsd train: interrupted. No checkpoint is in out yet, so start again.")
    assert "--resume_from_checkpoint true" in line


def test_no_room_for_a_checkpoint(base: list[str], lstsd: Callable[..., Any]) -> None:
    """As on a full disk: the limit on a file's size leaves room for the model, but not for the optimizer's state."""

    process = lstsd("train", *base, "--save_strategy", "epoch", file_size=40_000)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "lstsd train: error: A file of the checkpoint could not be written" in err.splitlines()[-1]
