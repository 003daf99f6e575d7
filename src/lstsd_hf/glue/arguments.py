"""The arguments of `lstsd train`: a config file, flags that override it, and `package://` paths."""

import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from json import JSONDecodeError
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser

from ..config import LSTSDConfig
from .checks import check_numbers, check_training_arguments
from .config_file import config_flags, nearest
from .errors import WRONG_VALUE, as_value_error
from .tasks import TASKS

HUB_DATASET = "nyu-mll/glue"

# What a word processor may have made of a flag's "--".
_OTHER_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"

_AT_LEAST_1 = (
    "max_seq_length",
    "max_train_samples",
    "max_eval_samples",
    "max_predict_samples",
    "preprocessing_num_workers",
)

# Settings of the user's own files, which a GLUE task would leave unread.
_OF_FILES = (
    "validation_file",
    "test_file",
    "validation_fraction",
    "text_columns",
    "label_kind",
    "where",
    "tsv_quoting",
)

# The columns of tokenized rows; the id column cannot have one of these names.
_TAKEN_COLUMNS = ("idx", "label", "labels", "label_ids", "input_ids", "attention_mask", "token_type_ids")


def resolve_package(name: str) -> str:
    """Turns `package://NAME/path` into the path of a file or folder in the installed package NAME.

    Any other name is returned as it is. The package is not imported.

    Raises:
        ValueError: the package is not installed, the path leads out of it, or nothing is there.
    """
    scheme = "package://"
    if not name.startswith(scheme):
        return name
    package, _, inside = name.removeprefix(scheme).partition("/")
    path = PureWindowsPath(inside)  # it splits at both kinds of slash
    if not inside or path.anchor or ".." in path.parts:
        raise ValueError(f"{name!r}: expected package://NAME/path with a relative path and without '..'.")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name!r}: no package {package!r} is installed here. Install it with pip, or give a path.")
    found = Path(next(iter(spec.submodule_search_locations)), *path.parts)
    if not found.exists():
        raise ValueError(f"{name!r}: the package {package!r} is installed, but has no {inside!r}.")
    return str(found)


@dataclass
class ModelArguments:
    """What to fine-tune, and how."""

    model_name_or_path: str = field(
        default="",
        metadata={"help": "A model's name on the Hub, a folder, or package://NAME/path in an installed package."},
    )
    config_name: str | None = field(
        default=None, metadata={"help": "The configuration, if it is not the model's own."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "The tokenizer, if it is not the model's own."})
    cache_dir: str | None = field(default=None, metadata={"help": "The folder for downloads from the Hub."})
    model_revision: str = field(default="main", metadata={"help": "The model's branch, tag or commit on the Hub."})
    token: str | None = field(default=None, metadata={"help": "The access token for the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Load a checkpoint with another number of labels: its head is initialized anew."},
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "Keep only the first N layers of the checkpoint."}
    )
    trainer: Literal["lstsd", "plain"] = field(
        default="lstsd", metadata={"help": "'plain': the same run with transformers.Trainer, for comparison."}
    )
    report: bool = field(
        default=False,
        metadata={"help": "After training, write a page about each training sample."},
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is missing: expected a model's name on the Hub, or a folder.")
        self.model_name_or_path = resolve_package(self.model_name_or_path)
        if self.config_name is not None:
            self.config_name = resolve_package(self.config_name)
        if self.tokenizer_name is not None:
            self.tokenizer_name = resolve_package(self.tokenizer_name)
        if self.report and self.trainer == "plain":
            raise ValueError("report=True goes with trainer='lstsd', found 'plain', which keeps no predictions.")

    @property
    def hub(self) -> dict[str, Any]:
        """The arguments that every `from_pretrained` takes."""
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass
class DataArguments:
    """What to train, evaluate and predict on."""

    task_name: str | None = field(default=None, metadata={"help": "The GLUE task: " + ", ".join(TASKS) + "."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": f"A folder in GLUE's own TSV layout to read the task from, instead of {HUB_DATASET}."},
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Your training data instead of a task: a CSV, TSV, JSON (lines) or parquet file, or a folder that "
            "Dataset.save_to_disk wrote."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "Your validation data, like train_file."})
    test_file: str | None = field(default=None, metadata={"help": "Your test data; labels in it are ignored."})
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "The one or two text columns of your files. Default: sentence1 and sentence2, or sentence, or "
            "text, or the only column beside the label."
        },
    )
    label_column: str = field(
        default="label",
        metadata={"help": "The label column of your files. Decimal numbers are scores, all other labels classes."},
    )
    label_kind: Literal["classes", "scores"] | None = field(
        default=None,
        metadata={"help": "Whether the labels of your files are classes or scores. Default: guessed from the labels."},
    )
    tsv_quoting: bool = field(
        default=False,
        metadata={"help": "Quotes enclose fields in your TSV files, as in CSV. Default: quotes are part of the text."},
    )
    where: str | None = field(
        default=None, metadata={"help": "COLUMN=VALUE: use only the rows of your files where this holds."}
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={"help": "Without a validation_file: the share of train_file to hold out, drawn with the seed."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer inputs are truncated to this many tokens."})
    pad_to_max_length: bool = field(
        default=False,
        metadata={"help": "Pad all inputs to max_seq_length. Default: pad each batch to its longest input."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first N training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first N test rows."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "The number of processes that tokenize."}
    )

    def __post_init__(self) -> None:
        if (self.task_name is None) == (self.train_file is None):
            found = "neither" if self.task_name is None else "both"
            raise ValueError(f"Expected either task_name or train_file, found {found}.")
        if self.task_name is not None:
            self.task_name = self.task_name.lower()
            if self.task_name not in TASKS:
                hint = nearest(self.task_name, TASKS)
                raise ValueError(f"Unknown task_name {self.task_name!r}: expected one of {', '.join(TASKS)}.{hint}")
            for name in _OF_FILES:
                if getattr(self, name) not in (None, False):
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} goes with train_file: a GLUE task says what its splits, "
                        "columns and labels are. Leave it out."
                    )
        elif self.data_dir is not None:
            raise ValueError("data_dir goes with task_name, found train_file.")
        for name in ("data_dir", "train_file", "validation_file", "test_file"):
            if getattr(self, name) is not None:
                setattr(self, name, resolve_package(getattr(self, name)))
        if self.text_columns is not None and not 1 <= len(set(self.text_columns)) == len(self.text_columns) <= 2:
            raise ValueError(f"text_columns={self.text_columns}: expected one or two columns, each once.")
        if self.text_columns is not None and self.label_column in self.text_columns:
            raise ValueError(f"text_columns={self.text_columns}: expected columns other than the label's.")
        if self.label_kind not in (None, "classes", "scores"):
            raise ValueError(f"label_kind={self.label_kind!r}: expected 'classes' or 'scores'.")
        if self.where is not None and not self.where.partition("=")[1]:
            raise ValueError(f"where={self.where!r}: expected COLUMN=VALUE.")
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction}: expected a number between 0 and 1.")
        for name in _AT_LEAST_1:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1.")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def lists(self) -> list[str]:
        """The flags that take several values."""
        return [action.dest for action in self._actions if action.nargs == "+"]


def flag_parser() -> tuple[_Parser, list[str]]:
    """The parser of every flag, and the names of all settings that a config may have."""
    kinds: tuple[Any, ...] = (ModelArguments, DataArguments, LSTSDConfig)
    names = [entry.name for kind in kinds for entry in fields(kind) if entry.init]
    parser = _Parser(
        kinds,
        prog="lstsd train",
        usage="lstsd train [CONFIG] [--flag value ...]",
        description="Fine-tunes on a GLUE task, or on your own files. CONFIG is the path of a YAML file, or the name "
        "of a config that the package carries, such as mrpc. Flags override it.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help-all", action="help", help="Show every flag.")
    # Otherwise every process of a run reports which weights the checkpoint lacks.
    parser.set_defaults(log_level_replica="error")
    return parser, names


def parse(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, LSTSDConfig]:
    """Reads the arguments: a config first, if there is one, then flags, which override it.

    Raises:
        ValueError: a flag or key is unknown (the nearest is named), a value is not allowed, or one is missing.
    """
    parser, names = flag_parser()
    flags = list(argv)
    if not flags:
        raise ValueError("Nothing to do: expected a CONFIG, or flags. See lstsd train --help.")
    _refuse_other_dashes(flags, names)
    if not flags[0].startswith("-"):
        flags = config_flags(flags[0], names, parser.lists()) + flags[1:]
    # This comes before the dataclasses check their values: a value is probably missing because its flag is misspelt.
    known, unknown = parser.parse_known_args(flags)
    if unknown:
        name = unknown[0].removeprefix("--").partition("=")[0].replace("-", "_")
        what = f"unknown flag {unknown[0]!r}" if unknown[0].startswith("-") else f"no flag takes {unknown[0]!r}"
        raise ValueError(f"{what}.{nearest(name, names)}")
    check_numbers(vars(known))
    with (
        as_value_error("A JSON file of the training arguments (accelerator_config, deepspeed ...)", JSONDecodeError),
        as_value_error("The training arguments", *WRONG_VALUE),
    ):
        model_args, data_args, args = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    if not (args.do_train or args.do_eval or args.do_predict):
        raise ValueError("Nothing to do: give --do_train, --do_eval or --do_predict.")
    if model_args.report and not args.do_train:
        raise ValueError("report=True goes with do_train=True. The report of an earlier run: lstsd report RUN_DIR.")
    if known.output_dir is None:
        raise ValueError("output_dir is missing: expected the folder that the run writes to. Give --output_dir.")
    taken = (*_TAKEN_COLUMNS, data_args.label_column, *(data_args.text_columns or ()))
    if args.sample_id_column in taken:
        raise ValueError(
            f"sample_id_column={args.sample_id_column!r} is the name of another column: expected a name of its own."
        )
    check_training_arguments(args)
    return model_args, data_args, args


def _refuse_other_dashes(flags: Sequence[str], names: Collection[str]) -> None:
    for flag in flags:
        name = flag.lstrip("-" + _OTHER_DASHES)
        dashes = flag[: len(flag) - len(name)]
        if dashes.strip("-") and name.partition("=")[0].replace("-", "_") in names:
            raise ValueError(f"{flag!r} begins with {dashes!r}: expected '--', with the hyphen of the keyboard.")
