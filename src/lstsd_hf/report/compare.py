"""Two runs side by side, sample by sample: what the second one does better and worse than the first.

    <output_dir of B>/_report/comparison.html

Both are judged by the labels of the second run, which may be cleaned, on the samples that both have predicted.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict

from ..extras import require
from ..store.files import one_at_a_time, replacing
from .folder import report_folder
from .history import open_run
from .pair import pair_of
from .texts import read_texts


def write_comparison(
    run_a: str | os.PathLike[str],
    run_b: str | os.PathLike[str],
    dataset: str | os.PathLike[str] | Dataset | DatasetDict | None = None,
    text_columns: str | Sequence[str] | None = None,
    *,
    logits_dirs: tuple[str | os.PathLike[str] | None, str | os.PathLike[str] | None] = (None, None),
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> Path:
    """Writes a page about two runs into the `_report` of the second, over an earlier one.

    Args:
        run_a: The first run's output_dir, or a checkpoint in it.
        run_b: The second run's, the one that should be better.
        dataset: The training set of the second run, or its file, for the texts. None: the page shows ids.
        text_columns: The column to show, or several; None: all text columns but the label's.
        logits_dirs: The folders of the two stores, if they are not `<run>/_logits`.
        sample_id_column: The data set's id column. If it has none, a row's position is its id.
        label_column: The data set's label column, which must agree with the second run's labels.
        tsv_quoting: Whether quotes enclose fields in a TSV file.

    Returns:
        The path of the page.

    Raises:
        StoreError: see `write_report`; or the page cannot be written.
        ValueError: there is no such run; the runs are of different tasks or have no sample in common; or the texts
            cannot be read or are of other samples.
        MissingExtraError: the extra `report` is not installed.
    """
    require("report")
    from .comparison_page import write_comparison_page

    folder = report_folder(Path(run_b))
    runs = [open_run(run, logits) for run, logits in zip((run_a, run_b), logits_dirs, strict=True)]
    texts = None
    if dataset is not None:
        texts = read_texts(
            dataset,
            runs[1],
            text_columns,
            sample_id_column=sample_id_column,
            label_column=label_column,
            tsv_quoting=tsv_quoting,
        )
    pair, notes = pair_of(*runs)
    folder.mkdir(exist_ok=True)
    path = folder / "comparison.html"
    with one_at_a_time(folder), replacing(path) as temporary:
        write_comparison_page(temporary, pair, texts, notes)
    return path
