"""The sentences that a tagger's report shows, from a data set with a list of words in each row.

The r-th labelled token of a sample stands for the r-th word that has a tag; the words' tags must agree with the run's
labels. A truncated sentence has fewer tokens than words. If the data set has no tags, all words count. If samples have
more labels than words, as when each piece of a word has one, no word is marked.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import Dataset, DatasetDict

from ..training.sample_ids import LABEL_COLUMNS
from .cells import listed, sample_ids, shown
from .files import UserFile, open_data_set, open_user_file
from .many_rows import TokenRun
from .parsing import list_in

Array = npt.NDArray[Any]

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", *LABEL_COLUMNS)  # words' tags first: tokenized data also has labels of pieces
_NO_TAG = ("", "-100", "None")


class Marked(NamedTuple):
    """A word in a text.

    Attributes:
        word: The word itself.
        begin: Its start in the text, in UTF-16 units, as JavaScript counts.
        end: Its end in the text, exclusive, in the same units.
    """

    word: str
    begin: int
    end: int


class TokenTexts:
    """A data set's sentences by sample id, and the word that each of a sample's labelled tokens stands for.

    Attributes:
        columns: The one column that is shown.
    """

    def __init__(
        self,
        file: UserFile,
        run: TokenRun,
        text_columns: str | Sequence[str] | None,
        sample_id_column: str,
        label_column: str | None,
    ) -> None:
        """Reads words, tags and ids, and checks that the data set is the one that the run was trained on.

        Raises:
            ValueError: there is no column of words, or neither ids nor tags; an id is missing, negative, repeated, or
                not an integer; no sample of the run is there, or one has other tags.
        """
        named = [text_columns] if isinstance(text_columns, str) else list(text_columns or ())
        column = next((name for name in (*named, *(() if named else WORDS)) if name in file.columns), None)
        if column is None or len(named) > 1:
            raise ValueError(
                f"{file.name} has the columns {listed(file.columns)}: expected one of words, a list in each row, "
                f"called {' or '.join(map(repr, named[:1] or WORDS))}. Name it with text_columns (--text_columns)."
            )
        self.columns = (column,)
        tags = next((name for name in ([label_column] if label_column else TAGS) if name in file.columns), None)
        ids = [sample_id_column] if sample_id_column in file.columns else []
        if (label_column and tags is None) or not (ids or tags):
            raise ValueError(
                f"{file.name} has the columns {listed(file.columns)}: expected the samples' ids in "
                f"{sample_id_column!r}, or the words' tags in {label_column or 'tags'!r}. Name their columns with "
                "sample_id_column and label_column (--sample_id_column, --label_column)."
            )
        cells = file.read([column, *([tags] if tags else [])], ids, to_show=True)
        numbers = np.arange(len(cells.texts))
        if ids:
            numbers = sample_ids(file.name, ids[0], cells.others[ids[0]], range(len(cells.texts)))
        row_of = {int(number): row for row, number in enumerate(numbers)}
        known = [i for i, sample in enumerate(run.sample_ids.tolist()) if sample in row_of]
        if not known:
            raise ValueError(
                f"{file.name} has none of the run's samples: expected the data set that it was trained on, with the "
                "ids that it had then (sample_id_column, --sample_id_column)."
            )
        rows = cells.texts.select([row_of[int(sample)] for sample in run.sample_ids[known]])
        labels = [run.labels[run.offsets[i] : run.offsets[i + 1]].tolist() for i in known]
        samples = run.sample_ids[known].tolist()
        words = [[str(word) for word in _as_list(cell)] for cell in _cells(rows, column)]
        self._words = dict(zip(samples, words, strict=True))
        places = [list(range(len(own))) for own in words]
        if tags:
            spelled = [[str(tag) for tag in _as_list(cell)] for cell in _cells(rows, tags)]
            places = [[k for k, tag in enumerate(own) if tag not in _NO_TAG] for own in spelled]
            found = [[own[k] for k in of] for own, of in zip(spelled, places, strict=True)]
            _refuse_other_tags(file.name, tags, samples, found, labels, _numbers_of_tags(rows, tags, run))
        # A sample with more labels than words has those of pieces of words, and then all samples may.
        fits = all(len(own) <= len(of) for own, of in zip(labels, places, strict=True))
        self._places = dict(zip(samples, places, strict=True)) if fits else {}

    @property
    def has_words_of_tokens(self) -> bool:
        """Whether it is known which word a token stands for."""
        return bool(self._places)

    def of(self, sample_ids: npt.NDArray[np.integer[Any]], limit: int) -> tuple[list[str | None], int]:
        """The sentences of (n,) samples, None where the data set has none; and how many were cut to `limit`."""
        texts: list[str | None] = []
        cut = 0
        for sample in sample_ids.tolist():
            text = " ".join(self._words[sample]) if sample in self._words else None
            if text is not None and len(text) > limit:
                text, cut = f"{text[: limit - 1].rstrip()}…", cut + 1
            texts.append(text)
        return texts, cut

    def mark(self, sample: int, token: int) -> Marked | None:
        """The word that a sample's labelled token stands for, numbered from 0; None if it is not known."""
        places = self._places.get(sample, [])
        if token >= len(places):
            return None
        words, place = self._words[sample], places[token]
        begin = _utf16_length(" ".join([*words[:place], ""]))
        return Marked(words[place], begin, begin + _utf16_length(words[place]))


def _utf16_length(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _as_list(cell: Any) -> list[Any]:
    """The list in a cell: a list, a list as text, or words between spaces."""
    if cell is None:
        return []
    if isinstance(cell, str):
        found = list_in(cell)
        return cell.split() if found is None else found
    return list(cell) if isinstance(cell, (list, tuple, np.ndarray)) else [cell]


def _cells(rows: Dataset, column: str) -> Iterator[Any]:
    return (cell for batch in rows.select_columns([column]).iter(10_000) for cell in batch[column])


def _numbers_of_tags(rows: Dataset, tags: str, run: TokenRun) -> dict[str, int]:
    """The class of each tag as the data set may write it: by its name in the run, or by its number."""
    named = {name: i for i, name in enumerate(run.classes)}
    own = getattr(getattr(rows.features[tags], "feature", None), "names", None)
    # A number stands for a name: a data set may have the run's classes in another order.
    by_number = {str(i): named.get(name, i) for i, name in enumerate(own or run.classes)}
    return {**by_number, **named}


def _refuse_other_tags(
    name: str, column: str, samples: list[int], tags: list[list[str]], labels: list[list[int]], numbers: dict[str, int]
) -> None:
    """Raises ValueError if the tags of a sample's words differ from the labels of its tokens.

    A sample with more labels than tagged words is not checked. If the run does not know how a tag is spelled, each
    spelling must always stand for the same class.
    """
    pairs = [
        (sample, list(zip(own, of, strict=False)))
        for sample, own, of in zip(samples, tags, labels, strict=True)
        if len(of) <= len(own)
    ]
    if not {tag for own in tags for tag in own} <= numbers.keys():
        numbers = {}
        for _, own in pairs:
            for tag, label in own:
                numbers.setdefault(tag, label)
    for sample, own in pairs:
        wrong = next(((tag, label) for tag, label in own if numbers[tag] != label), None)
        if wrong is not None:
            raise ValueError(
                f"{name}: sample id {sample} has the tag {shown(wrong[0])} in {column!r}, where the run has class "
                f"{wrong[1]}: expected the tags that it was trained on, as they were. Give that data set, with the "
                "ids that it had then (sample_id_column, --sample_id_column), and name the column of its words' tags "
                "(label_column, --label_column)."
            )


def read_token_texts(
    dataset: str | os.PathLike[str] | Dataset | DatasetDict,
    run: TokenRun,
    text_columns: str | Sequence[str] | None = None,
    *,
    sample_id_column: str = "sample_id",
    label_column: str | None = None,
    tsv_quoting: bool = False,
) -> TokenTexts:
    """As `texts.read_texts`, with lists of words and of tags in place of texts and labels."""
    if isinstance(dataset, (Dataset, DatasetDict)):
        file = open_data_set(dataset, "The data set of the texts")
    else:
        file = open_user_file(dataset, tsv_quoting=tsv_quoting)
    return TokenTexts(file, run, text_columns, sample_id_column, label_column)
