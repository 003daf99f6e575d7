"""The names of a run's folders and files. Needs only the standard library."""

import os
from pathlib import Path

LOGITS_FOLDER = "_logits"
REPORT_FOLDER = "_report"
# A push to the Hub leaves these out, because their names start with an underscore.
PRIVATE_FOLDERS = (LOGITS_FOLDER, REPORT_FOLDER)

# As in transformers, which this module must not import.
CHECKPOINT_PREFIX = "checkpoint"
TRAINER_STATE_FILE = "trainer_state.json"


def checkpoints_of(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, the newest first."""
    folders = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}-*")
    steps = {int(number): path for path in folders if (number := path.name.rpartition("-")[2]).isdecimal()}
    return [path for _, path in sorted(steps.items(), reverse=True)]


def absent(path: Path, kind: str) -> str:
    """Says why there is no "file" or "folder" at a path: nothing is there, or something else."""
    return f"not a {kind}" if os.path.lexists(path) else f"no such {kind}"
