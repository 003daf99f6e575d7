"""The names of the folders and files of a run. Needs nothing."""

import os
from pathlib import Path

LOGITS_FOLDER = "_logits"
REPORT_FOLDER = "_report"
# What a push to the Hub leaves out, for the underscore in front.
PRIVATE_FOLDERS = (LOGITS_FOLDER, REPORT_FOLDER)

# As in transformers, which this module is not to load.
CHECKPOINT_PREFIX = "checkpoint"
TRAINER_STATE_FILE = "trainer_state.json"


def checkpoints_of(output_dir: str | os.PathLike[str]) -> list[Path]:
    """A run's folders `checkpoint-<step>`, the newest first."""
    folders = Path(output_dir).glob(f"{CHECKPOINT_PREFIX}-*")
    steps = {int(number): path for path in folders if (number := path.name.rpartition("-")[2]).isdecimal()}
    return [path for _, path in sorted(steps.items(), reverse=True)]
