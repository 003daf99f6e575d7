"""The folder for a run's pages."""

import re
from pathlib import Path

from ..paths import CHECKPOINT_PREFIX, REPORT_FOLDER, TRAINER_STATE_FILE


def report_folder(run_dir: Path) -> Path:
    """The `_report` of a run, or of the run that a checkpoint is in; it may not exist yet.

    Raises:
        ValueError: there is a file or a link where the folder goes, or the run's name is not UTF-8.
    """
    place = run_dir.resolve()
    try:
        f"{run_dir}{place.name}".encode()
    except UnicodeEncodeError as error:  # neither the page nor a parquet file could have such a name
        raise ValueError(
            f"{place}: expected a folder whose name is in UTF-8, to write a report in. Rename it."
        ) from error
    is_checkpoint = re.fullmatch(rf"{CHECKPOINT_PREFIX}-\d+", place.name) and (place / TRAINER_STATE_FILE).is_file()
    folder = (place.parent if is_checkpoint else run_dir) / REPORT_FOLDER
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = "link" if folder.is_symlink() else "file"  # a link would let files elsewhere be overwritten
        raise ValueError(f"{folder} is a {what}: expected a folder, where the report goes. Move it aside.")
    return folder
