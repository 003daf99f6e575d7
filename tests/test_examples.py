"""The scripts in examples/, run as they stand there, on real data cut short and models of one layer."""

import csv
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    set_seed,
)

from lstsd_hf import LogitsStore

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"
DATA, GLUE = SHARED / "data", SHARED / "glue"
pytestmark = pytest.mark.skipif(not (DATA.is_dir() and GLUE.is_dir()), reason=f"the real data is not there: {SHARED}")

ROWS = 40
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Weights so large that predictions are far from uniform, and a teacher has something to say.
SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SHAPE |= {"initializer_range": 0.2}
SMALL = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}


# ---- data, as the examples read it


def glue(task: str) -> list[dict[str, str]]:
    """The first rows of a task's training file."""
    with (GLUE / task / "train.tsv").open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for _, row in zip(range(ROWS), rows, strict=False)]


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reviews(folder: Path) -> Path:
    names = {"0": "bad", "1": "good"}
    rows = [{"text": row["sentence"], "label": names[row["label"]]} for row in glue("SST-2")]
    return write_csv(folder / "reviews.csv", rows)


def scored_pairs(folder: Path) -> Path:
    rows = [{"text": r["sentence1"], "other": r["sentence2"], "label": r["score"]} for r in glue("STS-B")]
    return write_csv(folder / "scores.csv", rows)


def equal_pairs(folder: Path) -> Path:
    rows = [{"text": r["#1 String"], "other": r["#2 String"], "label": r["Quality"]} for r in glue("MRPC")]
    return write_csv(folder / "pairs.csv", rows)


def paraphrases(folder: Path) -> Path:
    return write_csv(folder / "p.csv", ({"source": r["#1 String"], "target": r["#2 String"]} for r in glue("MRPC")))


def prompts(folder: Path) -> Path:
    rows = ({"prompt": f"{r['#1 String']}\n", "completion": r["#2 String"]} for r in glue("MRPC"))
    return write_json_lines(folder / "prompts.jsonl", rows)


def preferences(folder: Path) -> Path:
    """Sentences, each preferred to itself with its words reversed."""
    rows = (row["sentence"].split() for row in glue("SST-2"))
    return write_json_lines(folder / "p.jsonl", ({"chosen": " ".join(w), "rejected": " ".join(w[::-1])} for w in rows))


def sentences(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(row["sentence"] + "\n" for row in glue("SST-2")), encoding="utf-8")
    return path


def first_sentences(name: str, folder: Path) -> Path:
    """The first sentences of a CoNLL file."""
    text = (DATA / name).read_text(encoding="utf-8")
    path = folder / name
    path.write_text("\n\n".join(re.split(r"\n\s*\n", text)[:ROWS]) + "\n", encoding="utf-8")
    return path


def questions(folder: Path) -> Path:
    """Some paragraphs in SQuAD's format, with one question that has no answer."""
    articles = json.loads((DATA / "xquad-en.json").read_text(encoding="utf-8"))["data"][:2]
    for article in articles:
        article["paragraphs"] = article["paragraphs"][:2]
    articles[0]["paragraphs"][0]["qas"].append({"id": "none", "question": "Why?", "answers": []})
    path = folder / "questions.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


def images(folder: Path) -> Path:
    """Images of three handwritten digits, eight of each."""
    from PIL import Image

    digits = load_digits()
    for digit in range(3):
        (folder / "images" / str(digit)).mkdir(parents=True)
        for i, pixels in enumerate(digits.images[digits.target == digit][:8]):
            Image.fromarray((16 * pixels).clip(0, 255).astype(np.uint8)).save(
                folder / "images" / str(digit) / f"{i}.png"
            )
    return folder / "images"


# ---- models of one layer


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes the folder of a model by its kind, with a WordPiece tokenizer trained on the data."""
    root = tmp_path_factory.mktemp("models")
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    files = [str(DATA / "wnut17-train.conll"), str(DATA / "xquad-en.json"), str(GLUE / "MRPC" / "train.tsv")]
    pieces.train(files, trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False))
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, pieces.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="[SEP]", model_max_length=128, **names)

    def make(kind: str) -> str:
        folder = root / kind
        if folder.exists():
            return str(folder)
        set_seed(0)
        size = {"vocab_size": len(tokenizer), "pad_token_id": 0}
        if kind == "vit":
            config = ViTConfig(**SHAPE, image_size=8, patch_size=4)
            ViTModel(config).save_pretrained(folder)
            ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
            return str(folder)
        if kind == "bert":
            BertModel(BertConfig(**SHAPE, **size, max_position_embeddings=128)).save_pretrained(folder)
        elif kind == "llama":
            config = LlamaConfig(**SHAPE, **size, max_position_embeddings=128, eos_token_id=3, bos_token_id=2)
            LlamaForCausalLM(config).save_pretrained(folder)
        elif kind == "t5":
            shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
            config = T5Config(**shape, **size, eos_token_id=3, decoder_start_token_id=0)
            T5ForConditionalGeneration(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


# ---- the examples


def command(script: str, folder: Path, **flags: Any) -> list[str]:
    """The command line of a short run."""
    given = {**SMALL, "output_dir": folder / "out", **flags}
    return [str(EXAMPLES / script), *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def run(monkeypatch: pytest.MonkeyPatch, script: str, folder: Path, **flags: Any) -> Path:
    """Runs an example in this process, and returns its output_dir."""
    monkeypatch.setattr(sys, "argv", command(script, folder, **flags))
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return folder / "out"


def logged(folder: Path, name: str) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[name] for entry in log if name in entry]


@pytest.mark.parametrize(
    ("script", "kind", "data", "flags"),
    [
        ("text_classification.py", "bert", reviews, {}),
        ("regression.py", "bert", scored_pairs, {}),
        ("question_answering.py", "bert", questions, {"max_length": 96, "stride": 16}),
        ("causal_lm.py", "llama", sentences, {"block_size": 16}),
        ("sft.py", "llama", prompts, {"max_length": 96, "activation_checkpointing": False}),
        ("seq2seq.py", "t5", paraphrases, {}),
        ("image_classification.py", "vit", images, {"remove_unused_columns": False}),
        ("reward.py", "bert", preferences, {"max_length": 96, "activation_checkpointing": False}),
        ("cross_encoder.py", "bert", equal_pairs, {}),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(".py") else "",
)
def test_a_run_has_teachers(script, kind, data, flags, small_models, tmp_path, monkeypatch):
    out = run(monkeypatch, script, tmp_path, model=small_models(kind), data=data(tmp_path), **flags)
    assert logged(out, "long_term_coverage")[-1] == 1.0
    assert logged(out, "short_term_loss")[-1] > 0
    assert LogitsStore.open(out / "_logits").sealed_epochs[-1] == 2
    assert list(out.glob("*.safetensors"))


@pytest.mark.parametrize(("train", "held_out"), [("wnut17-train.conll", "wnut17-dev.conll"), ("ewt-dev.conllu",) * 2])
def test_words_have_teachers(train, held_out, small_models, tmp_path, monkeypatch):
    """The words that are left of a truncated sentence keep their teachers."""
    files = {"data": first_sentences(train, tmp_path), "eval_data": first_sentences(held_out, tmp_path)}
    out = run(monkeypatch, "token_classification.py", tmp_path, model=small_models("bert"), max_length=24, **files)
    assert logged(out, "long_term_coverage")[-1] == 1.0
    offsets = LogitsStore.open(out / "_logits").epoch_parts(2)["offsets"]
    words = [len(block.splitlines()) for block in files["data"].read_text(encoding="utf-8").split("\n\n")]
    assert len(offsets) == ROWS + 1
    assert (np.diff(offsets) > 0).all()
    assert (np.diff(offsets) < words).any()


def test_a_question_has_a_sample_for_each_feature(small_models, tmp_path, monkeypatch):
    data = questions(tmp_path)
    flags = {"max_length": 96, "stride": 16, "max_steps": 2}
    out = run(monkeypatch, "question_answering.py", tmp_path, model=small_models("bert"), data=data, **flags)
    asked = sum(len(p["qas"]) for a in json.loads(data.read_text())["data"] for p in a["paragraphs"])
    assert LogitsStore.open(out / "_logits").num_samples > 2 * asked


def test_labels_are_cleaned(small_models, tmp_path, monkeypatch):
    data = reviews(tmp_path)
    out = run(monkeypatch, "clean_labels.py", tmp_path, model=small_models("bert"), data=data)
    assert (out / "_report" / "report.html").stat().st_size > 100_000
    rows, kept = (path.read_text(encoding="utf-8").splitlines() for path in (data, out / "clean.csv"))
    assert set(kept) < set(rows)
    assert LogitsStore.open(out / "retrained" / "_logits").num_samples == len(kept) - 1


def test_a_small_model_learns_from_a_larger_one(small_models, tmp_path, monkeypatch):
    names, data = small_models("bert"), reviews(tmp_path)
    teacher = run(monkeypatch, "text_classification.py", tmp_path / "large", model=names, data=data)
    out = run(monkeypatch, "distillation.py", tmp_path / "small", model=names, data=data, teacher=teacher)
    assert logged(out, "outside_coverage") == [1.0] * 15
    assert logged(out, "short_term_coverage")[-1] == 1.0
    assert LogitsStore.open(out / "_teacher").source["classes"] == ["bad", "good"]


def test_a_plain_trainer_is_recorded(small_models, tmp_path, monkeypatch, capsys):
    out = run(monkeypatch, "record_a_plain_trainer.py", tmp_path, model=small_models("bert"), data=reviews(tmp_path))
    assert LogitsStore.open(out / "_logits").sealed_epochs == [0, 1, 2]
    scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[-10:]]
    assert scores == sorted(scores, reverse=True)


def test_several_processes(small_models, tmp_path):
    """The example is launched as its docstring says."""
    flags = {"model": small_models("bert"), "data": reviews(tmp_path), "per_device_train_batch_size": 4}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *command("text_classification.py", tmp_path, **flags)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    store = LogitsStore.open(tmp_path / "out" / "_logits")
    assert store.sealed_epochs[-1] == 2
    assert np.isfinite(store.read(2, store.sample_ids)).all(axis=1).sum() == ROWS - 4  # the others are held out


def test_the_notebook_finds_labels(small_models, tmp_path, monkeypatch):
    """The notebook is executed as it stands, but with its parameter cell replaced."""
    book = nbformat.read(EXAMPLES / "find_wrong_labels.ipynb", as_version=4)
    given = {"MODEL": small_models("bert"), "DATA": str(reviews(tmp_path)), "OUT": str(tmp_path / "out")}
    given |= {"CHANGED": 0.1, "EPOCHS": 2}
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    assert all(f"{name} = " in cell.source for name in given)
    cell.source = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    assert re.search(r"\d of the 4 most suspicious, by chance 0\.4", printed)
    assert (tmp_path / "out" / "_report" / "report.html").exists()
    given, clean = (
        (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines() for name in ("given.csv", "clean.csv")
    )
    assert len(given) == ROWS + 1
    kept = set(clean)
    assert clean == [line for line in given if line in kept]  # the rows that stay, in their order


# ---- the list of examples


def test_the_table_names_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^)]+\.(?:py|ipynb))\)", text))
    assert linked == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_shows_its_command(path):
    docstring = path.read_text(encoding="utf-8").split('"""')[1]
    assert f"python examples/{path.name} --model" in docstring
