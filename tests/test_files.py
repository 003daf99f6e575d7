"""A user's files: what is read from each format, and what is refused, with the file and the line or row."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lstsd_hf.report.files import FORMATS, open_data_set, open_user_file


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells_of(
    path: Path, *, texts: tuple[str, ...] = ("text",), others: tuple[str, ...] = ("label",), **options: Any
) -> dict[str, list[str | None]]:
    cells = open_user_file(path, **options).read(texts, others)
    return cells.texts.to_dict() | {name: column.cells for name, column in cells.others.items()}


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as found:
        cells_of(path, **options)
    assert str(path) in str(found.value)


ROWS = {
    "text": ["01", "null", "NA", "1e3", 'say "a, b"', "caf\u00e9 \u2028", "None", " x "],
    "label": ["007", "null", "NA", "1e3", "None", "0.10", "-1", "x"],
}


@pytest.mark.parametrize("suffix", [*FORMATS, ".CSV", ""])
def test_cells_are_text_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".tsv":
        lines = ["text\tlabel", *map("\t".join, zip(ROWS["text"], ROWS["label"], strict=True))]
        save(path, "\n".join(lines) + "\n")
    elif suffix in (".json", ".jsonl"):
        pd.DataFrame(ROWS).to_json(path, orient="records", lines=suffix == ".jsonl")
    elif suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    elif suffix == "":
        Dataset.from_dict(ROWS).save_to_disk(path)
    else:
        pd.DataFrame(ROWS).to_csv(path, index=False)
    assert cells_of(path) == ROWS


def test_types_do_not_change_from_one_part_of_a_file_to_the_next(tmp_path: Path) -> None:
    labels = [*["01"] * 25_000, "x"]
    path = save(tmp_path / "a.csv", "text,label\n" + "".join(f"{i:06},{label}\n" for i, label in enumerate(labels)))
    assert cells_of(path) == {"text": [f"{i:06}" for i in range(25_001)], "label": labels}


def test_only_an_empty_cell_is_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", 'text,label\n,""\nnull,nan\n')
    assert cells_of(path) == {"text": [None, "null"], "label": [None, "nan"]}
    path = save(
        tmp_path / "a.jsonl", '{"text": "", "label": ""}\n{"text": null, "label": NaN}\n{"label": null, "x": 1}'
    )
    assert cells_of(path) == {"text": ["", None, None], "label": ["", None, None]}


@pytest.mark.parametrize(
    "name", ["train[1].csv", "*.csv", "a?.csv", "a b.csv", "caf\u00e9 \U0001f600.csv", "{a,b}.csv"]
)
def test_a_name_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    for other in ("train1.csv", "ab.csv", "a.csv", "b.csv"):
        save(tmp_path / other, "text,label\nwrong,0\n")
    assert cells_of(save(tmp_path / name, "text,label\nright,1\n")) == {"text": ["right"], "label": ["1"]}


def test_names_of_other_formats_and_of_folders_are_taken_as_they_stand(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["right"], "label": [1]})
    wrong = Dataset.from_dict({"text": ["wrong"], "label": [0]})
    (tmp_path / "label=3").mkdir()  # some readers would take the label from the name
    for folder in (tmp_path, tmp_path / "label=3"):
        for name in ("a[1]", "*"):
            wrong.save_to_disk(folder / "a1")
            rows.save_to_disk(folder / name)
            wrong.to_parquet(folder / "a1.parquet")
            rows.to_parquet(folder / f"{name}.parquet")
            rows.to_json(folder / f"{name}.json")
            for path in (folder / name, folder / f"{name}.parquet", folder / f"{name}.json"):
                assert cells_of(path) == {"text": ["right"], "label": ["1"]}


def test_a_corrected_file_is_read_anew_whatever_its_time(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", "text,label\na,0\n")
    before = path.stat()
    assert cells_of(path)["label"] == ["0"]
    save(path, "text,label\na,1\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cells_of(path)["label"] == ["1"]


# ---- CSV and TSV


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("\ufefftext,label\na,0\n", ["a"]),
        ('\ufeff"text","label"\na,0\n', ["a"]),
        ("text,label\r\na,0\r\n\r\nb,1\r\n", ["a", "b"]),
        ("text,label\ra,0\rb,1\r", ["a", "b"]),  # as Macs once wrote them
        ("text,label\na,0\nb,1", ["a", "b"]),
        ('text,label\n"a\nb",0\n"c\r\nd\re",1\n', ["a\nb", "c\r\nd\re"]),
        ("text,label\na\rb,0\nc\r,1", ["a\rb", "c\r"]),  # pandas writes such fields without quotes
        ("text,label\r\na\rb,0\r\n", ["a\rb"]),
        ("\n  \ntext,label\na,0\n\n   \nb,1\n\n", ["a", "b"]),
        ('text,label\n"a ""b"" c",0\na "b" c,0\nit\'s,1\n', ['a "b" c', 'a "b" c', "it's"]),
        ("text,label\na\x00b,0\na\\,1\n", ["a\x00b", "a\\"]),
        ("text,label\n" + "x" * 200_000 + ",0\n", ["x" * 200_000]),  # above the csv module's own limit
        ("text,label,,\na,0,,\n", ["a"]),
        ('text,label\n" ",0\n', [" "]),
        ("x,text,label,x\n1,a,0,2\n", ["a"]),
    ],
)
def test_csv(tmp_path: Path, content: str, texts: list[str]) -> None:
    limit = csv.field_size_limit()
    assert cells_of(save(tmp_path / "a.csv", content))["text"] == texts
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,0,1\nb,1,1\n", r"line 2: expected 2 fields \('text', 'label'\), found 3"),
        ("text,label\na,0\nb,1\nc,d,1\n", r"line 4: expected 2 fields .* found 3"),
        ("text,label\na,0,\nb,1,\n", r"line 2: expected 2 fields .* found 3.*at the end of a line begins another"),
        ("text,label\na, b,0\n", r"line 2: .* found 3\. A comma separates fields, unless quotes enclose it"),
        ("text,label\na\nb,1\n", r"line 2: expected 2 fields .* found 1"),
        ('text,label\na,0\n" "\n', r"line 3: expected 2 fields .* found 1"),
        ("text,label\na,0\nb\n", r"line 3: expected 2 fields .* found 1"),
        ('text,label\n\n"a\nb\nc",0\nd,1,2\n', r"line 6: expected 2 fields .* found 3"),
        ("label,text\n0,a\rb\n1,c,d\n", r"line 3: expected 2 fields .* found 3"),
        ("text,label\ra,0\rb,1,2\r", r"line 3: expected 2 fields .* found 3"),
        ('text,label\na,0\n"b,1\nc,0\n', r"line 3: .* unexpected end of data"),
        ('text,label\n"good" film,0\n', r"line 2: .* quotes in it are doubled"),
        ("text,label\na,0\ncaf\u00e9,1\n".encode("latin-1"), r"expected UTF-8 text, found .* 0xe9 .* line 3\. Save"),
        ("text,label\na,0\n".encode("utf-16"), r"expected UTF-8 text, found .* line 1"),
        (b"text,other,label\na,\xff,0\n", r"expected UTF-8 text"),
        ("", r"expected a header and rows, found an empty file"),
        ("\n \n", r"expected a header and rows, found an empty file"),
        ("text,label\n", r"expected rows, found none"),
        ("text,label", r"expected rows, found none"),
        ("text,text,label\na,b,0\n", r"expected one column 'text', found 2\. Rename all but one"),
        ("text,label,label\na,0,1\n", r"expected one column 'label', found 2"),
        ("text;label\na;0\n", r"expected a column 'text', found the columns 'text;label'"),
        ("text,label\na,0\n\ufefftext,label\nb,1\n", r"line 3: the header is there again, as where files were joined"),
        (" text,label\na,0\n", r"expected a column 'text', found the columns ' text', 'label'"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    refused(save(tmp_path / "a.csv", content), message)


def test_one_column(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", 'text\na\n\n""\nb\n')
    assert cells_of(path, others=()) == {"text": ["a", None, "b"]}
    path = save(tmp_path / "a.csv", 'text\n" "\n \n"\n "\na\n \t\n')
    assert cells_of(path, others=()) == {"text": [" ", "\n ", "a"]}  # white space in quotes is text
    assert cells_of(save(path, 'text\r" "\r \ra\r'), others=()) == {"text": [" ", "a"]}
    refused(save(tmp_path / "a.csv", "text\na, b\n"), r"line 2: expected 1 fields \('text'\), found 2", others=())


def test_quotes_in_tsv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.tsv", 'text\tlabel\nplain "x"\t0\n')
    assert cells_of(path)["text"] == ['plain "x"']
    assert not caplog.records
    save(path, 'text\tlabel\n"one"\t0\n"two\t1\n')
    assert cells_of(path)["text"] == ['"one"', '"two']
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: 2 cells begin with a quote, which was taken as part of the text. If quotes enclose fields in this "
        "file, set tsv_quoting (--tsv_quoting)."
    )
    caplog.clear()
    save(path, 'text\tlabel\n"one\ttwo\n""three"""\t0\n')
    assert cells_of(path, tsv_quoting=True)["text"] == ['one\ttwo\n"three"']
    save(path, '"text"\t"label"\n"a"\t0\n')
    refused(path, r"found the columns '\"text\"', '\"label\"'\. If quotes enclose fields .*, set tsv_quoting")
    assert cells_of(path, tsv_quoting=True) == {"text": ["a"], "label": ["0"]}
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text\tlabel\n"a\tb"\t0\n', r"line 2: .* found 3\. A tab separates.*; if quotes enclose .* set tsv_quoting"),
        ("text\tlabel\na\t0\t\n", r"line 2: .* found 3\. .* one at the end of a line begins another"),
        ("text\tlabel\na\t0\nb\n", r"line 3: .* found 1"),
    ],
)
def test_tsv_that_is_refused(tmp_path: Path, content: str, message: str) -> None:
    refused(save(tmp_path / "a.tsv", content), message)


def test_tsv_keeps_what_csv_would_interpret(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tsv", "\ufefftext\tlabel\r\na, 'b' \\t\t0\r\nc\rd\t1\r\n")
    assert cells_of(path)["text"] == ["a, 'b' \\t", "c\rd"]


def test_text_columns_are_those_that_hold_more_than_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", "n,x,text,b,none\n1,1.5,a,True,\n-2e3,,1,false,\n")
    file = open_user_file(path)
    assert file.text_columns(file.columns) == ["text"]
    path = save(tmp_path / "a.jsonl", '{"n": 1, "text": "1", "l": ["a"], "mixed": 1}\n{"mixed": "a"}')
    file = open_user_file(path)
    assert file.text_columns(file.columns) == ["text", "mixed"]
    assert file.value_columns(file.columns) == ["n", "text", "mixed"]
    pd.DataFrame({"n": [1], "text": ["1"], "l": [["a"]], "c": pd.Categorical(["a"])}).to_parquet(
        tmp_path / "a.parquet"
    )
    file = open_user_file(tmp_path / "a.parquet")
    assert file.text_columns(file.columns) == ["text", "c"]
    assert file.value_columns(file.columns) == ["n", "text", "c"]


# ---- JSON


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "label": 1}, {"text": "b", "label": 0}]',
        '[\n {\n  "text": "a",\n  "label": 1\n },\n {"text": "b", "label": 0}]\n',
        '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n',
        '\ufeff\r\n{"text": "a", "label": 1}\r\n\r\n{"text": "b", "label": 0}\r\n',
        '{\n "text": "a",\n "label": 1\n}\n{\n "text": "b",\n "label": 0\n}',
        '{"text": "a", "label": 1}{"text": "b", "label": 0}',
        '{"text": "a", "label": 1, "x": {"y": [1, {"y": 2, "y": 3}]}}\n{"label": 0, "text": "b", "x": "z"}',
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json(tmp_path: Path, content: str, suffix: str) -> None:
    assert cells_of(save(tmp_path / f"a{suffix}", content)) == {"text": ["a", "b"], "label": ["1", "0"]}


def test_values_of_json_keep_their_spelling(tmp_path: Path) -> None:
    path, found = tmp_path / "a.json", {}
    for value in ("1", "1.0", "1e3", "-0.10", "true", "false", '"01"', "12345678901234567890123", "Infinity"):
        save(path, f'[{{"text": "a", "label": {value}}}]')
        (found[value],) = cells_of(path)["label"]
    assert found == {value: value.strip('"') for value in found} | {"true": "True", "false": "False"}


def test_a_list_of_texts_is_a_column(tmp_path: Path) -> None:
    assert cells_of(save(tmp_path / "a.json", '["a", "\\ud83d\\ude00"]'), others=()) == {"text": ["a", "\U0001f600"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b", "lab', r"cannot be read as JSON: .* line 2 "),
        ('{"text": "a", "label": 1}\n{"text": "b"; "label": 1}', r"cannot be read as JSON: .* line 2 column 13"),
        ("[" * 100_000, r"cannot be read as JSON: it is nested too deeply"),
        ('{"a":' * 100_000, r"cannot be read as JSON: it is nested too deeply"),
        ("", r"expected rows, found none"),
        ("[]", r"expected rows, found none"),
        ("[{}, {}]", r"expected rows, found none"),
        ("3", r"data row 1: expected an object of columns, found the number 3"),
        ('[{"text": "a", "label": 1}, null]', r"data row 2: expected an object of columns, found null"),
        ('[{"text": "a", "label": 1}, "b"]', r"data row 2: expected an object of columns, found 'b'"),
        ('["a", {"text": "a"}]', r"data row 2: expected a text, as in the first row, found an object"),
        ('{"text": "a", "text": "b", "label": 1}', r"data row 1: the name 'text' is there twice"),
        ('{"text": "a", "label": 1}\n{"label": 0, "text": "b", "label": 1}', r"data row 2: the name 'label' is there"),
        ('{"text": ["a"], "label": 1}', r"data row 1: expected text in 'text', found a list"),
        ('{"text": "a", "label": 1}\n{"text": 5, "label": 1}', r"data row 2: expected text in 'text', found .* 5"),
        ('{"text": false, "label": 1}', r"data row 1: expected text in 'text', found false"),
        ('{"text": "a", "label": {"x": 1}}', r"data row 1: expected one value in 'label', found an object"),
        ('{"text": "a", "label": []}', r"data row 1: expected one value in 'label', found a list"),
        ('{"text": "a\\ud83d", "label": 1}', r"data row 1: expected text in 'text', found half of a surrogate pair"),
        ('{"text": "a", "label": "\\udc00"}', r"data row 1: expected text in 'label', found half of a surrogate"),
        ('{"text": "a"}', r"expected a column 'label', found the columns 'text'"),
        (b'{"text": "caf\xe9", "label": 1}', r"expected UTF-8 text"),
        ('{"text": ["a", "b"], "label": [0, 1]}', r"data row 1: expected text in 'text', found a list"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    refused(save(tmp_path / "a.json", content), message)


# ---- files and data sets with types


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([1, None, -2], pa.int8()), ["1", None, "-2"]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([0.1, None, float("nan"), 1.0], pa.float32()), ["0.1", None, None, "1.0"]),
        (pa.array([0.1, 1e-07, 1.0], pa.float64()), ["0.1", "1e-07", "1.0"]),
        (pa.array(np.array([0.1], np.float16)), ["0.1"]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array(["b", None, "a"]).dictionary_encode(), ["b", None, "a"]),
        (pa.array([7, 3, 7]).dictionary_encode(), ["7", "3", "7"]),
        (pa.array(["b", None], pa.large_string()), ["b", None]),
        (pa.array(["b", None], pa.string_view()), ["b", None]),
        (pa.array([None, None], pa.null()), [None, None]),
    ],
)
def test_parquet(tmp_path: Path, labels: pa.Array, expected: list[str | None]) -> None:
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
    texts = [f"t{i}" for i in range(len(labels))]
    unused = pa.array([1] * len(labels), pa.duration("s"))  # of a type that `datasets` has no name for
    for kind in kinds:
        table = pa.table({"text": pa.array(texts).cast(kind), "label": labels, "unused": unused, "text.x": texts})
        pq.write_table(table, tmp_path / "a.parquet")
        assert cells_of(tmp_path / "a.parquet") == {"text": texts, "label": expected}
        assert cells_of(tmp_path / "a.parquet", texts=("text.x",), others=()) == {"text.x": texts}


def test_class_labels_keep_their_names_in_their_order(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg", "unused"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [1, 0, -1, None]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "a")
    files = [open_user_file(tmp_path / "a.parquet"), open_user_file(tmp_path / "a"), open_data_set(rows, "rows")]
    for file in files:
        column = file.read(["text"], ["label"]).others["label"]
        assert column.cells == ["neg", "pos", None, None]
        assert column.names == ("pos", "neg", "unused")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": [b"a"], "label": [1]}, r"expected text in 'text', found binary"),
        ({"text": [1], "label": [1]}, r"expected text in 'text', found int64"),
        ({"text": ["a"], "label": [[1]]}, r"expected one value in each row of 'label', found list"),
        ({"text": ["a"], "label": [{"x": 1}]}, r"expected one value in each row of 'label', found struct"),
        ({"text": ["a"], "label": [b"x"]}, r"expected one value in each row of 'label', found binary"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, r"expected rows, found none"),
        ({"text": ["a"]}, r"expected a column 'label', found the columns 'text'"),
    ],
)
def test_parquet_that_is_refused(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", message)


def test_parquet_whose_text_is_not_utf8(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"text": text, "label": [0]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"a\.parquet: cannot be read as parquet: .*UTF8")


def test_parquet_that_is_none_or_has_a_column_twice(tmp_path: Path) -> None:
    refused(save(tmp_path / "a.parquet", b"PAR1 nothing PAR1"), r"cannot be read as parquet")
    refused(save(tmp_path / "b.parquet", b""), r"cannot be read as parquet")
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "text", "label"]), tmp_path / "c.parquet")
    refused(tmp_path / "c.parquet", r"expected one column 'text', found 2")


def test_a_data_set_in_its_present_order(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 2, 3]}).select([2, 0, 3])
    rows.set_transform(lambda batch: {"text": ["no"] * len(batch["text"])})
    found = open_data_set(rows, "rows").read(["text"], ["label"])
    assert found.texts["text"][:] == ["c", "a", "d"]
    assert found.others["label"].cells == ["2", "0", "3"]


def test_a_folder_of_several_splits(tmp_path: Path) -> None:
    splits = {name: Dataset.from_dict({"text": [name], "label": [0]}) for name in ("train", "validation")}
    DatasetDict(splits).save_to_disk(tmp_path / "a")
    assert cells_of(tmp_path / "a")["text"] == ["train"]
    assert cells_of(tmp_path / "a", split="validation")["text"] == ["validation"]
    refused(tmp_path / "a", r"expected a split 'test', found 'train', 'validation'", split="test")


def test_messages_are_one_short_line(tmp_path: Path) -> None:
    header = ",".join([f"c{i}" for i in range(999)] + ['"two\nlines \x1b[31m"', "x" * 999])
    for line in ("a,b", "1," * 1001):
        with pytest.raises(ValueError, match=r"line 3: expected 1001 fields") as found:
            cells_of(save(tmp_path / "a.csv", f"{header}\n{line}\n"), texts=("c1",), others=())
        assert str(found.value).isprintable()
        assert len(str(found.value)) < 500
    with pytest.raises(
        ValueError, match=r"expected a column 'text', found the columns 'two\\nlines \\x1b\[31m', 'xxx"
    ):
        cells_of(save(tmp_path / "a.csv", header[-1020:].partition(",")[2] + "\n"))


def test_a_folder_without_rows_or_with_damaged_facts(tmp_path: Path) -> None:
    Dataset.from_dict({"text": [], "label": []}).save_to_disk(tmp_path / "empty")
    refused(tmp_path / "empty", r"empty: expected rows, found none")
    Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "damaged")
    save(tmp_path / "damaged" / "dataset_info.json", "[]")
    refused(tmp_path / "damaged", r"damaged: expected a folder that Dataset\.save_to_disk wrote")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_text_column_is_named_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    getattr(rows, "to_json" if kind == "jsonl" else f"to_{kind}")(path)
    refused(path, r"expected text columns, each once, found 'text', 'text'", texts=("text", "text"))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("/proc/self/mem")
    refused(tmp_path / "a.csv", r"a\.csv: cannot be read: Input/output error\.")


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.csv", r"missing\.csv: no such file")
    refused(
        tmp_path / "missing", r"expected a folder, or a file that ends in \.csv, \.tsv, \.json, \.jsonl, \.parquet"
    )
    refused(save(tmp_path / "a.txt", "text,label\na,0\n"), r"expected a folder, or a file that ends in \.csv")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", r"expected a folder that Dataset\.save_to_disk wrote")
    save(tmp_path / "folder.csv" / "state.json", "[")
    save(tmp_path / "folder.csv" / "dataset_info.json", "{}")
    refused(tmp_path / "folder.csv", r"expected a folder that Dataset\.save_to_disk wrote")


# ---- cost


def test_a_large_csv_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    """In a process of its own, so that its peak of memory is the reader's."""
    rng = random.Random(0)
    words = ["the", "film", "was", "good", 'and "so"', "on, and", "on"]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["id", "text", "label"])
        rows.writerows([i, " ".join(rng.choices(words, k=25)), i % 3] for i in range(100_000))
    size = (tmp_path / "a.csv").stat().st_size
    script = f"""
import resource, sys, time
from lstsd_hf.report.files import open_user_file
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
cells = open_user_file({str(tmp_path / "a.csv")!r}).read(["text"], ["label"])
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(len(cells.texts), time.process_time() - start, used * 1024, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    rows_read, seconds, memory, has_torch = done.stdout.split()
    assert int(rows_read) == 100_000
    assert float(seconds) < 3
    assert int(memory) < 5 * size
    assert has_torch == "False"


# ---- any content

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(rows=[("", "\r")], end="\n")
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_csv_comes_back_as_it_was_written(tmp_path: Path, rows: list[tuple[str, str]], end: str) -> None:
    # Older versions of Python write a carriage return without quotes; at a line's end it is read as part of that end.
    quoting = csv.QUOTE_ALL if any("\r" in cell for row in rows for cell in row) else csv.QUOTE_MINIMAL
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator=end, quoting=quoting).writerows([("text", "label"), *rows])
    assert cells_of(tmp_path / "a.csv") == {
        "text": [text or None for text, _ in rows],
        "label": [label or None for _, label in rows],
    }
    save(tmp_path / "a.json", json.dumps([{"text": text, "label": label} for text, label in rows]))
    assert cells_of(tmp_path / "a.json") == {"text": [text for text, _ in rows], "label": [label for _, label in rows]}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text('text,label"\t\r\n01a.{}[]:\\ud8', max_size=60).map(str.encode),
        st.text('a,"\t\r\n 0', max_size=30).map(lambda rest: ("text,label\n" + rest).encode()),
    ),
    suffix=st.sampled_from(FORMATS),
    quoting=st.booleans(),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str, quoting: bool) -> None:
    path, refusal = save(tmp_path / f"a{suffix}", content), ""
    try:
        cells = cells_of(path, tsv_quoting=quoting)
    except ValueError as error:
        refusal, cells = str(error), {}
    assert all(cell is None or isinstance(cell, str) for column in cells.values() for cell in column)
    assert cells or refusal.startswith(str(path))
    assert "\n" not in refusal


def test_of_several_processes_one_speaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.tsv", 'text\tlabel\n"one\t0\n')
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        cells_of(path)
    assert len(caplog.records) == 1
