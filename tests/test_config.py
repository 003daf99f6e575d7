"""`LSTSDConfig` refuses bad values, and says what it found and what is allowed."""

import ast
import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from lstsd_hf import DistillationArguments, LSTSDConfig, LSTSDTrainer
from lstsd_hf.method.heads import Classes, Scores
from toys import config, rows, tiny_bert

SETTINGS = Path(__file__).parents[1] / "docs" / "settings.md"


@dataclass
class Seq2SeqConfig(DistillationArguments, Seq2SeqTrainingArguments):
    """Another trainer's arguments, with the method's."""


BAD_VALUES = pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mini_generation_epochs": 0}, r"mini_generation_epochs=0 .* integer of at least 1"),
        ({"mini_generation_epochs": 1.5}, r"mini_generation_epochs=1.5 .* integer of at least 1"),
        ({"long_term_weight": -0.1}, r"long_term_weight=-0.1 .* from 0 to 1"),
        ({"short_term_weight": math.nan}, r"short_term_weight=nan .* from 0 to 1"),
        ({"long_term_weight": 0.7, "short_term_weight": 0.4}, r"add up to 1.1: expected at most 1"),
        ({"temperature": 0}, r"temperature=0 .* above 0"),
        ({"temperature": math.inf}, r"temperature=inf .* finite"),
        ({"temperature": 1e200}, r"temperature=1e\+200 .* 1e-06 to 1e\+06"),
        ({"temperature": 1e-7}, r"temperature=1e-07 .* 1e-06 to 1e\+06"),
        ({"weight_schedule": "cosine"}, r"weight_schedule='cosine' .* 'constant', 'linear'"),
        ({"teacher_trust": "blind"}, r"teacher_trust='blind' .* 'constant', 'confidence'"),
        ({"lone_teacher": "nobody"}, r"lone_teacher='nobody' .* 'label', 'teacher'"),
        ({"logits_dtype": "bfloat16"}, r"logits_dtype='bfloat16' .* 'float16', 'float32'"),
        ({"logits_retention": "some"}, r"logits_retention='some' .* 'needed', 'all'"),
        ({"problem_type": "ranking"}, r"problem_type='ranking' .* None, 'regression', 'single_label_classification'"),
        ({"num_samples": 0}, r"num_samples=0 .* at least 1"),
        ({"sample_id_column": ""}, r"sample_id_column='' .* name of a column"),
        ({"logits_dir": ""}, r"logits_dir='' .* a folder for the store alone"),
        ({"logits_dir": 3}, r"logits_dir=3 .* a folder for the store alone"),
        ({"push_logits": "false"}, r"push_logits='false' .* one of False, True"),
        ({"resume_without_logits": None}, r"resume_without_logits=None .* one of False, True"),
        ({"accept_new_labels": "no"}, r"accept_new_labels='no' .* one of False, True"),
    ],
)


@BAD_VALUES
@pytest.mark.parametrize("config_class", [LSTSDConfig, Seq2SeqConfig])
def test_bad_values_are_refused_by_name(tmp_path, config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(output_dir=str(tmp_path), **settings)


@BAD_VALUES
def test_the_settings_alone_are_checked_too(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(**settings)


@pytest.mark.parametrize("config_class", [LSTSDConfig, Seq2SeqConfig])
def test_with_any_arguments_class_the_store_has_its_place(tmp_path, config_class):
    made = config_class(output_dir=str(tmp_path), learning_rate=1e-3)
    assert (made.logits_dir, made.learning_rate) == (os.path.join(tmp_path, "_logits"), 1e-3)
    with pytest.raises(ValueError, match="expected a name that starts with '_'"):
        config_class(output_dir=str(tmp_path), logits_dir=str(tmp_path / "logits"))
    with pytest.raises(ValueError, match="requires the save and eval strategy to match"):  # a check of transformers
        config_class(output_dir=str(tmp_path), load_best_model_at_end=True)


def test_the_wrong_order_of_bases_is_refused_with_the_right_one():
    """In the wrong order only `TrainingArguments.__post_init__` would run, and the method's fields stay unchecked."""
    message = r"class Backwards: Seq2SeqTrainingArguments stands before .* Write\s+class Backwards\(DistillationArg"
    with pytest.raises(TypeError, match=message):

        class Backwards(Seq2SeqTrainingArguments, DistillationArguments):
            pass


def test_weights_may_take_the_whole_loss(tmp_path):
    LSTSDConfig(output_dir=str(tmp_path), long_term_weight=0.9, short_term_weight=0.1)


def test_a_weight_that_was_given_stays(tmp_path):
    given = LSTSDConfig(output_dir=str(tmp_path), long_term_weight=0.0)
    in_force = given.resolve(Scores.default_weight)
    assert (in_force.long_term_weight, in_force.short_term_weight) == (0.0, 0.1)
    assert (given.long_term_weight, given.short_term_weight) == (0.0, None)  # the user's object is unchanged
    with pytest.raises(ValueError, match=r"long_term_weight=0.7 and short_term_weight=0.4 add up to 1.1"):
        LSTSDConfig(output_dir=str(tmp_path), long_term_weight=0.7)


def test_the_store_lies_in_the_output_folder_where_a_push_leaves_it(tmp_path):
    assert LSTSDConfig(output_dir=str(tmp_path)).logits_dir == os.path.join(tmp_path, "_logits")
    LSTSDConfig(output_dir=str(tmp_path), logits_dir=str(tmp_path / "_logits"))
    LSTSDConfig(output_dir=str(tmp_path / "run"), logits_dir=str(tmp_path / "elsewhere"))
    LSTSDConfig(output_dir=str(tmp_path), logits_dir=str(tmp_path / "_a" / "b"))
    for name in ("logits", "a/_logits", "."):
        with pytest.raises(ValueError, match="expected a name that starts with '_'"):
            LSTSDConfig(output_dir=str(tmp_path), logits_dir=str(tmp_path / name))


def test_every_field_is_a_flag_with_help(tmp_path):
    flags = ["--output_dir", str(tmp_path), "--teacher_trust", "constant", "--temperature", "2", "--num_samples", "7"]
    (parsed,) = HfArgumentParser(LSTSDConfig).parse_args_into_dataclasses(flags)
    assert (parsed.teacher_trust, parsed.temperature, parsed.num_samples) == ("constant", 2.0, 7)
    own = [field for field in LSTSDConfig.__dataclass_fields__.values() if "help" in field.metadata]
    assert {"mini_generation_epochs", "push_logits", "resume_without_logits"} <= {field.name for field in own}


def test_the_readme_states_the_defaults(tmp_path):
    text = SETTINGS.read_text(encoding="utf-8")
    table = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+?) \|", text, flags=re.MULTILINE)
    stated = {
        name: ast.literal_eval(value)
        for names, values in table
        for name, value in zip(names.replace("`", "").split(", "), values.replace("`", "").split(", "), strict=True)
    }
    assert {"mini_generation_epochs", "long_term_weight", "short_term_weight", "teacher_trust"} <= set(stated)
    made = LSTSDConfig(output_dir=str(tmp_path))
    in_force = {**vars(made), **vars(made.resolve(Classes.default_weight)), "teacher_trust": made.teacher_trust}
    assert {name: in_force[name] for name in stated} == stated


def test_a_tilde_in_logits_dir_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = LSTSDConfig(output_dir="~/out", logits_dir="~/predictions")
    assert (config.output_dir, config.logits_dir) == (f"{tmp_path}/out", f"{tmp_path}/predictions")


def test_the_store_follows_output_dir(tmp_path: Path) -> None:
    """The folds of a cross-validation: replaced, or assigned."""
    first = config(tmp_path / "fold0", num_train_epochs=1)
    second = dataclasses.replace(first, output_dir=str(tmp_path / "fold1"))
    for arguments in (first, second):
        LSTSDTrainer(tiny_bert(), arguments, train_dataset=rows(16)).train()
    second.output_dir = str(tmp_path / "fold2")
    LSTSDTrainer(tiny_bert(), second, train_dataset=rows(16)).train()
    stores = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/_logits*/store.json"))
    assert stores == [f"fold{number}/_logits/store.json" for number in range(3)]


def test_a_folder_of_the_users_own_is_checked_against_an_output_dir_that_is_set_later(tmp_path: Path) -> None:
    arguments = config(tmp_path / "run", logits_dir=str(tmp_path / "elsewhere"))
    arguments.output_dir = str(tmp_path)
    with pytest.raises(ValueError, match=r"lies inside output_dir=.* under 'elsewhere': expected a name that starts"):
        LSTSDTrainer(tiny_bert(), arguments, train_dataset=rows(16)).train()
