"""Finds the checkpoint that `lstsd train` resumes from, and checks it before anything is trained."""

import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from ..paths import checkpoints_of
from ..training.checkpoint import last_complete_checkpoint


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
    if not resume_from_checkpoint or not Path(resume_from_checkpoint).is_dir():
        raise ValueError(
            f"resume_from_checkpoint={resume_from_checkpoint!r}: no such folder: expected a folder checkpoint-N, or "
            "true for the last one in output_dir."
        )
    return resume_from_checkpoint


def check_checkpoint(checkpoint: str, model: nn.Module) -> None:
    """Raises ValueError if a file of a checkpoint is damaged, or its weights have other shapes than the model's."""
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
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
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is damaged: torch.save did not write it. Resume from another checkpoint.")


def how_to_resume(output_dir: str) -> str:
    """A sentence that says how to resume a run that was interrupted."""
    found = checkpoints_of(output_dir)
    if found:
        return f"The same command with --resume_from_checkpoint true goes on from {found[0]}."
    return (
        f"No checkpoint is in {output_dir} yet, so start again. Once there is one (see save_strategy and save_steps), "
        "--resume_from_checkpoint true goes on from it."
    )
