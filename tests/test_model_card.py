"""The model card: valid for the Hub, true to the run, and silent about whoever made it."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from lstsd_hf import LogitsStore, LSTSDTrainer
from lstsd_hf.training.model_card import coverage, evaluation_metrics, infer_task, is_public
from toys import config, rows, tiny_bert

LONG, SHORT = "long_term_coverage", "short_term_coverage"


def accuracy(outcome: Any) -> dict[str, float]:
    return {"accuracy": float((outcome.predictions.argmax(1) == outcome.label_ids).mean()), "mcc": float("nan")}


def trained(folder: Path, model: Any = None, **changes: Any) -> LSTSDTrainer:
    data, evaluation = rows(40), rows(16, seed=1)
    settings = config(folder, logging_steps=4, eval_strategy="epoch", **changes)
    trainer = LSTSDTrainer(
        model or tiny_bert(), settings, train_dataset=data, eval_dataset=evaluation, compute_metrics=accuracy
    )
    trainer.train()
    return trainer


def card_of(trainer: LSTSDTrainer, **arguments: Any) -> ModelCard:
    trainer.create_model_card(**arguments)
    return ModelCard.load(Path(trainer.args.output_dir, "README.md"))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> LSTSDTrainer:
    return trained(tmp_path_factory.mktemp("card") / "my-model", temperature=2.0, weight_decay=0.01)


def test_a_run_without_named_data_has_a_valid_model_index(trainer):
    text = str(card_of(trainer))
    index = yaml.safe_load(text.split("---")[1])["model-index"]
    name, results = model_index_to_eval_results(index)
    assert name == "my-model"
    last = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert {result.metric_type: result.metric_value for result in results} == {
        "loss": last["eval_loss"],
        "accuracy": last["eval_accuracy"],
    }
    assert {(result.task_type, result.dataset_type) for result in results} == {("text-classification", "unknown")}
    assert "trained on an unknown dataset" in text


def test_the_first_lines_say_what_it_was_trained_on_and_how_to_load_it(trainer):
    text = card_of(trainer).text
    first = text[: text.index("\n## ")]
    mean, _ = LogitsStore.open(Path(trainer.args.output_dir, "_logits")).read_statistic("margin")[1].T
    assert f"It was trained on 40 rows. For {(mean < 0).sum()} of these another class was more probable" in first
    assert re.search(r"- Accuracy: \d", first)
    code = re.search(r"```python\n(.*?)```", first, re.DOTALL).group(1)
    assert code == (
        "from transformers import BertForSequenceClassification\n\n"
        'model = BertForSequenceClassification.from_pretrained("my-model")\n'
    )


def test_named_data_stays(trainer):
    card = card_of(trainer, dataset_tags="glue", dataset="GLUE MRPC", dataset_args="mrpc", language="en")
    assert card.data.datasets == ["glue"]
    assert card.data.language == ["en"]
    found = {(result.dataset_type, result.dataset_name, result.dataset_args) for result in card.data.eval_results}
    assert found == {("glue", "GLUE MRPC", "mrpc")}
    assert [result.metric_type for result in card.data.eval_results] == ["loss", "accuracy"]


def test_the_section_tells_what_was_done(trainer):
    """40 samples, 5 epochs of 5 steps, K = 2: 3 of 5 epochs have a long-term teacher, and 4 a short-term one."""
    text = card_of(trainer).text
    for line in (
        "| weight | 0.4 | 0.4 |",
        "| teaches from epoch (counted from 0) | 2 | 1 |",
        "| samples that had it, over the whole run | 60.0% | 80.0% |",
        "| samples that had it, in its last logged steps | 100.0% | 100.0% |",
        "- training samples: 40",
        "- epochs: 5",
        "- epochs in a mini-generation, `K`: 2",
        "- temperature: 2",
    ):
        assert line in text.splitlines()
    assert "_logits" not in text


def test_the_recipe_makes_the_same_settings(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n((?:(?!```).)*?)trainer = ", card_of(trainer).text, flags=re.DOTALL)
    made: dict[str, Any] = {}
    exec(block, made)
    # The recipe has the weights in force, which the run's own arguments may leave open. It leaves the trust open too.
    ours, theirs = trainer.args.to_dict() | asdict(trainer.settings), made["args"].to_dict()
    ours["teacher_trust"] = trainer.args.teacher_trust
    # What may differ: where and what the run writes, this machine, and how often the run logs.
    elsewhere = {"output_dir", "logits_dir", "logits_retention", "report_to", "disable_tqdm", "use_cpu"} | {
        "dataloader_pin_memory",
        "outside_weight",  # 0 in force where there is no outside teacher
    }
    often = {"logging_steps", "logging_nan_inf_filter"}
    assert {name for name in ours if ours[name] != theirs[name]} <= elsewhere | often


def recipe_of(trainer: LSTSDTrainer) -> Any:
    """The arguments that the recipe on a run's card makes."""
    (block,) = re.findall(r"```python\n((?:(?!```).)*?)trainer = ", card_of(trainer).text, flags=re.DOTALL)
    made: dict[str, Any] = {}
    exec(block, made)
    return made["args"]


def test_the_recipe_names_no_trust_that_the_run_did_not(tmp_path, monkeypatch):
    """By name, trust by honesty does not wait for a hundred steps."""
    monkeypatch.chdir(tmp_path)
    left_open = trained(tmp_path / "open")
    assert left_open.settings.teacher_trust == "honest"
    assert recipe_of(left_open).teacher_trust is None
    assert recipe_of(trained(tmp_path / "named", teacher_trust="honest")).teacher_trust == "honest"


def test_the_recipe_has_what_says_what_the_logits_stand_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"problem_type": "single_label_classification", "logits_top_k": 3, "sample_id_column": "number"}
    made = recipe_of(trained(tmp_path / "run", **changes))
    assert {name: getattr(made, name) for name in changes} == changes


def test_a_folder_that_is_no_store_keeps_no_card_from_being_written(trainer, tmp_path):
    (tmp_path / "_logits").mkdir()
    other = LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=rows(4))
    assert "more probable" not in card_of(other).text


def test_the_section_is_true_to_a_run_that_was_cut_short_or_taught_by_labels_alone(tmp_path):
    text = card_of(trained(tmp_path, max_steps=7, long_term_weight=0.0, short_term_weight=0.0)).text
    assert "- epochs: 1.4" in text.splitlines()  # of 5 steps each
    assert "Both teachers' weights were 0" in text
    assert "was taught, beside its label" not in text


@pytest.mark.parametrize("teacher", ["long_term", "short_term"])
def test_the_section_tells_that_one_teacher_did_not_teach(tmp_path, teacher):
    text = card_of(trained(tmp_path, lone_teacher="label", **{f"{teacher}_weight": 0.0})).text
    off, on = ("long", "short") if teacher == "long_term" else ("short", "long")
    assert f"The {off}-term teacher's weight was 0." in text
    assert f"the {on}-term teacher is " in text
    assert f"the {off}-term teacher is " not in text


def test_a_trainer_that_has_not_trained_counts_nothing_in_the_store_of_another(trainer):
    assert "another class was more probable" in card_of(trainer).text
    other = LSTSDTrainer(tiny_bert(), config(Path(str(trainer.args.output_dir))), train_dataset=rows(4))
    assert "more probable" not in card_of(other).text


def test_the_recipe_has_what_a_schedule_and_a_best_model_need(tmp_path):
    changes = {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-5},
        "load_best_model_at_end": True,
        "save_strategy": "epoch",
        "metric_for_best_model": "accuracy",
    }
    trainer = trained(tmp_path, **changes)
    (block,) = re.findall(r"```python\n((?:(?!```).)*?)trainer = ", card_of(trainer).text, flags=re.DOTALL)
    made: dict[str, Any] = {}
    exec(block, made)
    for name in (*changes, "eval_strategy", "greater_is_better"):
        assert getattr(made["args"], name) == getattr(trainer.args, name), name


def test_a_card_is_written_anew_each_time(trainer):
    first = str(card_of(trainer, tags=["mine"]))
    assert str(card_of(trainer, tags=["mine"])) == first
    assert first.count("## Long Short-Term Sample Distillation") == 1
    assert {"mine", "generated_from_trainer", "lstsd", "self-distillation"} <= set(ModelCard(first).data.tags)
    assert {"one", "lstsd"} < set(card_of(trainer, tags="one").data.tags)


def test_there_is_no_model_index_before_an_evaluation(tmp_path):
    card = card_of(LSTSDTrainer(tiny_bert(), config(tmp_path), train_dataset=rows(8)))
    assert not {"model-index", "model_name", "base_model"} & set(card.data.to_dict())
    assert "| samples that had it, over the whole run | not logged | not logged |" in card.text


@pytest.mark.parametrize(("head", "weight"), [("classes", "0.4"), ("regression", "0.1")])
def test_the_weights_are_those_in_force_before_a_training_too(tmp_path, head, weight):
    untrained = LSTSDTrainer(tiny_bert(head), config(tmp_path), train_dataset=rows(8, head))
    text = card_of(untrained).text
    assert f"| weight | {weight} | {weight} |" in text
    assert f"long_term_weight={weight}," in text
    assert untrained.args.long_term_weight is None  # the kind of problem is not settled before training


@pytest.mark.parametrize("name", ["/home/alice/bert", "../alice/bert", "~/alice", r"C:\alice\bert", "", "EXISTING"])
def test_no_local_path_is_told(trainer, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    monkeypatch.setattr(trainer.model.config, "_name_or_path", "alice" if name == "EXISTING" else name)
    text = str(card_of(trainer))
    assert "alice" not in text
    assert "base_model" not in text
    assert "This model was trained on an unknown dataset." in text.splitlines()
    assert str(trainer.args.output_dir) not in text


def test_a_model_of_the_hub_is_named(trainer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(trainer.model.config, "_name_or_path", "google/bert_uncased")
    card = card_of(trainer)
    assert card.data.base_model == "google/bert_uncased"
    assert "is a fine-tuned version of [google/bert_uncased](https://huggingface.co/google/bert_uncased)" in card.text


def test_an_adapter_does_not_tell_where_its_base_model_lay(tmp_path):
    base = tiny_bert()
    base.config._name_or_path = "/home/alice/bert"
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    trainer = trained(tmp_path / "adapter", model=model)
    trainer.save_model()
    assert "alice" in (tmp_path / "adapter" / "README.md").read_text()  # PEFT's own card names it
    card = card_of(trainer)
    assert "alice" not in str(card)
    assert card.data.library_name == "peft"
    assert {"lora", "lstsd"} <= set(card.data.tags)
    assert {result.task_type for result in card.data.eval_results} == {"text-classification"}


def test_the_present_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = LSTSDTrainer(tiny_bert(), config(Path("."), do_train=False), eval_dataset=rows(8))
    trainer.evaluate()
    card = card_of(trainer)
    assert card.data.model_name == tmp_path.name
    assert f"# {tmp_path.name}" in card.text.splitlines()


def test_coverage_weighs_each_log_by_its_steps():
    log = [
        {"base_loss": 1.0, "step": 10, SHORT: 0.0},
        {"eval_loss": 1.0, "step": 10},
        {"base_loss": 1.0, "step": 20, SHORT: 0.5, LONG: 0.25},
        {"train_loss": 1.0, "base_loss": 1.0, "step": 25, SHORT: 1.0, LONG: 1.0},
    ]
    assert coverage(log, "short_term") == (pytest.approx((0 * 10 + 0.5 * 10 + 1.0 * 5) / 25), 1.0)
    assert coverage(log, "long_term") == (pytest.approx((0 * 10 + 0.25 * 10 + 1.0 * 5) / 25), 1.0)
    assert coverage(log[1:2], "long_term") is None


def test_metrics_are_those_of_the_last_step_that_was_evaluated():
    log = [
        {"eval_loss": 3.0, "eval_f1": 0.1, "step": 5},
        {"eval_a_loss": 2.0, "eval_runtime": 9.0, "eval_samples_per_second": 1.0, "step": 10},
        {"loss": 1.0, "step": 10},
        {"eval_b_loss": 1.0, "eval_b_f1": float("inf"), "eval_model_preparation_time": 0.1, "step": 10},
        {"train_loss": 1.0, "step": 10},
    ]
    assert evaluation_metrics(log) == {"a_loss": 2.0, "b_loss": 1.0}
    assert evaluation_metrics(log[2:3]) == {}


def test_names_and_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "bert").mkdir(parents=True)
    assert is_public("bert-base-uncased")
    assert is_public("google/bert_uncased_L-2")
    assert not any(is_public(name) for name in ("/x", "a/b/c", "./x", "~x/y", "", "models/bert", str(tmp_path)))
    assert infer_task("ViTForImageClassification") == "image-classification"
    assert infer_task("Wav2Vec2ForSequenceClassification") == "audio-classification"
    assert infer_task("BertForMultipleChoice") == "multiple-choice"
    assert infer_task("VideoMAEForVideoClassification") == "video-classification"
    assert infer_task("MyNet") == "other"
