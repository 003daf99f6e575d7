"""Finds the checkpoint that `lstsd train` resumes from, and checks it before anything is trained."""

import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from transformers.training_args import OptimizerNames

from ..paths import LOGITS_FOLDER, absent, checkpoints_of
from ..store.files import open_regular
from ..training.checkpoint import last_complete_checkpoint, refuse_incomplete
from .checks import rehearse_optimizer
from .errors import WRONG_VALUE

# The files of a checkpoint with the state of a run on one process, and the names that Trainer expects in each.
_STATES: dict[str, set[str]] = {
    "optimizer.pt": {"state", "param_groups"},
    "scheduler.pt": {"last_epoch"},
    "rng_state.pth": {"python", "numpy", "cpu"},
}


def checkpoint_to_resume(resume_from_checkpoint: str | None, output_dir: str) -> str | None:
    """The folder to resume from; None if the run starts anew.

    Args:
        resume_from_checkpoint: A checkpoint's folder; "true": the last complete one in `output_dir`; "false" or None:
            none.
        output_dir: The run's folder.

    Raises:
        ValueError: there is no such folder, or no checkpoint.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint.lower() == "false":
        return None
    if resume_from_checkpoint.lower() == "true":
        return last_complete_checkpoint(output_dir)
    folder = Path(resume_from_checkpoint or "?")  # an empty path is the present folder
    if not folder.is_dir():
        raise ValueError(
            f"resume_from_checkpoint={resume_from_checkpoint!r}: {absent(folder, 'folder')}: expected a folder "
            "checkpoint-N, or true for the last one in output_dir."
        )
    return resume_from_checkpoint


def check_checkpoint(checkpoint: str, model: nn.Module, args: TrainingArguments) -> None:
    """Checks the files of a checkpoint before the run changes anything.

    Args:
        checkpoint: The checkpoint's folder.
        model: The run's model.
        args: The run's arguments.

    Raises:
        ValueError: a file is damaged, its weights have other shapes than the model's, or its optimizer is another.
        OSError: a file cannot be read.
    """
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        open_regular(path).close()  # a pipe would block
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}. Resume from another checkpoint.") from error
        for name, shape in found.items():
            if name in shapes and shapes[name] != shape:
                raise ValueError(
                    f"{path}: {name} has the shape {shape}, and {shapes[name]} in this run's model: expected a "
                    "checkpoint of the same model, with as many labels. Resume with the settings that it was saved "
                    "with, or start anew in another output_dir."
                )
    for path in sorted(Path(checkpoint).glob("*.pt*")):
        if path.is_dir() or not _is_zip(path):
            raise ValueError(f"{path} is damaged: torch.save did not write it. Resume from another checkpoint.")
        if path.name in _STATES:
            _check_state(path, args)


def _is_zip(path: Path) -> bool:
    with open_regular(path) as file:
        return zipfile.is_zipfile(file)


def _check_state(path: Path, args: TrainingArguments) -> None:
    """Raises ValueError if a file of `_STATES` holds something else, or the state of another optimizer."""
    try:
        with safe_globals():  # the tensors stay on the disk
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, EOFError, ValueError, *WRONG_VALUE) as error:
        raise ValueError(f"{path} is damaged: {error}. Resume from another checkpoint.") from error
    if not isinstance(state, dict) or not state.keys() >= _STATES[path.name]:
        raise ValueError(f"{path} is damaged: it is no state of a run. Resume from another checkpoint.")
    if path.name != "optimizer.pt":
        return
    groups = state["param_groups"]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise ValueError(f"{path} is damaged: it is no state of a run. Resume from another checkpoint.")
    optimizer = rehearse_optimizer(args)
    if optimizer is None:
        return
    try:  # not by the names in a group: each optimizer knows which of them an older version lacked
        optimizer.load_state_dict({"state": {}, "param_groups": [{**groups[0], "params": [0]}]})
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    except (ValueError, *WRONG_VALUE) as error:
        what = f"optim={OptimizerNames(args.optim).value!r} ({type(error).__name__}: {error})"
        what = f"optim={OptimizerNames(args.optim).value!r} ({type(error).__name__}: {error})"
        raise ValueError(
            f"{path} is the state of another optimizer than {what}. Resume with the optim that the checkpoint was "
            "saved with, or start anew in another output_dir."
        ) from error


def how_to_resume(args: TrainingArguments, *, records: bool) -> str:
    """A sentence that says how to resume a run that was interrupted.

    Args:
        args: The run's arguments.
        records: Whether the run records predictions, which it then needs to resume.
    """
    if not args.do_train:
        return "Nothing was trained, so start again."
    for checkpoint in checkpoints_of(str(args.output_dir)):
        with suppress(FileNotFoundError, ValueError):
            refuse_incomplete(checkpoint)
            flags = "--resume_from_checkpoint true"
            if records and not Path(checkpoint, LOGITS_FOLDER).exists():  # as with save_only_model
                flags += " --resume_without_logits true"
            return f"The same command with {flags} goes on from {checkpoint}."
    return (
        f"No checkpoint is in {args.output_dir} yet, so start again. Once there is one (see save_strategy and "
        "save_steps), --resume_from_checkpoint true goes on from it."
    )
