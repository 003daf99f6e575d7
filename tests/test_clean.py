"""The cleaned training set: which rows change, that nothing else does, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from transformers import Trainer

from lstsd_hf import LogitsStore, PredictionRecorder, add_sample_ids, clean, cli, read_history
from lstsd_hf.glue.run import main
from toys import BAD, GOOD, config, tiny_bert

NAMES = ("negative", "positive", "neutral")
# By sample id: the given label, and the class that the model predicts in each epoch. Samples 1 and 4 look wrong.
LABELS = [0, 1, 2, 0, 2, 1]
PREDICTED = [0, 0, 2, 0, 1, 1]
ROWS = ["negative", "positive", "neutral", "negative", "neutral", "positive"]


def run_of(
    folder: Path, labels: Any = LABELS, predicted: Any = PREDICTED, names: Any = NAMES, sureness: Any = 3.0
) -> Path:
    """Writes a run of two epochs, in both of which the model predicts `predicted`; returns its folder."""
    folder.mkdir(exist_ok=True)
    logits = np.eye(len(names), dtype=np.float32)[np.asarray(predicted)] * np.reshape(sureness, (-1, 1))
    store = LogitsStore.create(folder / "_logits", len(labels), (len(names),), "float32", "test")
    store.write_labels(np.asarray(labels))
    for epoch in range(2):
        store.record(epoch, np.arange(len(labels)), logits)
        store.seal(epoch)
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("run"))


def write(path: Path, *lines: str, end: str = "\n", bom: bool = False) -> Path:
    path.write_bytes((("\ufeff" if bom else "") + "".join(line + end for line in lines)).encode("utf-8"))
    return path


def csv_of(folder: Path, labels: Any = ROWS, name: str = "train.csv") -> Path:
    return write(folder / name, "text,label", *(f"text {i},{label}" for i, label in enumerate(labels)))


# ---- which rows


def test_flagged_rows_are_dropped(run, tmp_path, capsys):
    path, output = csv_of(tmp_path), tmp_path / "clean.csv"
    cli.main(["clean", str(run), "--dataset", str(path), "--drop", "-o", str(output)])
    lines = path.read_text().splitlines(keepends=True)
    assert output.read_text() == "".join(lines[i] for i in (0, 1, 3, 4, 6))
    said = capsys.readouterr().out
    assert said == (
        f"{output}: 4 of 6 rows kept, 2 dropped, 0 of the kept ones relabelled; chosen by flags (noise_score above "
        "0.5).\n"
    )
    assert path.read_text() == "".join(lines)


def test_flagged_rows_get_the_class_that_the_run_suggests(run, tmp_path, capsys):
    path, output = csv_of(tmp_path), tmp_path / "clean.csv"
    cli.main(["clean", str(run), "--dataset", str(path), "--relabel", "-o", str(output)])
    expected = csv_of(tmp_path, [*ROWS[:1], "negative", *ROWS[2:4], "positive", *ROWS[5:]], "expected.csv")
    assert output.read_bytes() == expected.read_bytes()
    said = capsys.readouterr().out
    assert "6 of 6 rows kept, 0 dropped, 2 of the kept ones relabelled" in said
    assert "Relabelled: 'neutral' to 'positive' 1, 'positive' to 'negative' 1." in said


def test_a_score_chooses_more_or_fewer_rows(tmp_path):
    run = run_of(tmp_path, sureness=[3, 3, 3, 1, 0.1, 3])
    path = csv_of(tmp_path)
    score = {row["sample_id"]: row["noise_score"] for row in read_history(run)}
    assert score[1] > score[4] > 0.5 > score[3] > score[0]
    few = clean(run, path, tmp_path / "few.csv", drop=True, min_score=score[4] + 0.01)
    many = clean(run, path, tmp_path / "many.csv", drop=True, min_score=score[3])
    assert (few.dropped, many.dropped) == (1, 3)
    assert (tmp_path / "few.csv").read_text() == path.read_text().replace("text 1,positive\n", "")
    relabelled = clean(run, path, tmp_path / "relabelled.csv", relabel=True, min_score=score[3])
    assert relabelled.relabelled == {("positive", "negative"): 1, ("neutral", "positive"): 1}
    assert relabelled.unchanged == 1
    assert "1 chosen rows keep their label, which the run suggests as well." in str(relabelled)


def test_a_class_that_loses_all_its_samples_is_named(tmp_path):
    run = run_of(tmp_path / "run", predicted=[0, 0, 2, 0, 2, 0])  # both positive samples look wrong
    path = csv_of(tmp_path)
    dropped = clean(run, path, tmp_path / "dropped.csv", drop=True)
    relabelled = clean(run, path, tmp_path / "relabelled.csv", relabel=True)
    assert dropped.emptied == relabelled.emptied == ["positive"]
    for done in (dropped, relabelled):
        assert str(done).endswith("No sample is left of the class 'positive': look at its rows before you train.")
    header = "sample_id,decision,label,given,suggested,score"
    all_of_it = write(tmp_path / "all.csv", header, "1,drop,,positive,,0.9", "5,relabel,neutral,positive,,0.9")
    assert clean(run, path, tmp_path / "none.csv", decisions=all_of_it).emptied == ["positive"]
    one = write(tmp_path / "one.csv", header, "1,drop,,positive,,0.9")
    decided = clean(run, path, tmp_path / "one-clean.csv", decisions=one)
    assert decided.emptied == []
    assert "No sample is left" not in str(decided)


def test_decisions_alone_choose_where_there_are_some(run, tmp_path):
    """The decisions name neither of the two flagged rows. `drop` or `relabel` beside them changes nothing."""
    path = csv_of(tmp_path)
    decisions = write(
        tmp_path / "decisions.csv",
        "sample_id,decision,label,given,suggested,score",
        "0,drop,,negative,positive,0.1",
        "2,relabel,positive,neutral,neutral,0.2",
        "5,keep,,positive,positive,0.1",
    )
    for number, flag in enumerate(({}, {"drop": True}, {"relabel": True})):
        done = clean(run, path, tmp_path / f"{number}.csv", decisions=decisions, **flag)
        assert (tmp_path / f"{number}.csv").read_text() == path.read_text().replace("text 0,negative\n", "").replace(
            "text 2,neutral", "text 2,positive"
        )
        assert done.relabelled == {("neutral", "positive"): 1}
        assert done.dropped == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_decisions_that_a_spreadsheet_wrote(run, tmp_path, delimiter):
    rows = [
        ("decision", "sample_id", "note", "label", "given", ""),
        ("Drop", "1", "sure, and\nagain", "", "positive", ""),
        ("", "", "", "", "", ""),
        ("relabel", " 4 ", "", "positive", "neutral", ""),
        ("keep", "5.0", "", "", "positive", ""),
    ]
    lines = [delimiter.join(f'"{cell}"' if "\n" in cell else cell for cell in row) for row in rows]
    decisions = write(tmp_path / "decisions.csv", *lines, end="\r\n", bom=True)
    path = csv_of(tmp_path)
    clean(run, path, tmp_path / "clean.csv", decisions=decisions)
    expected = path.read_text().replace("text 1,positive\n", "").replace("text 4,neutral", "text 4,positive")
    assert (tmp_path / "clean.csv").read_text() == expected


@pytest.mark.parametrize(
    ("names", "label", "given"),
    [
        (("False", "True"), "FALSE", "TRUE"),
        (("01", "02"), "1", "2"),
        (("1.50", "2"), "1.5", "2.0"),
        (("1.50", "2"), "1,5", "2,0"),
        (("\t=a", "1,2,3"), "'\t=a", "1,2,3"),
        (("a\nb", "c  d"), "A\r\nB", "c d"),
    ],
)
def test_names_that_a_spreadsheet_spells_its_own_way(tmp_path, names, label, given):
    run = run_of(tmp_path, [0, 1, 0], [0, 0, 0], names)
    path = csv_of(tmp_path, [f'"{names[i]}"' for i in (0, 1, 0)])
    decisions = write(tmp_path / "decisions.csv", "", "sample_id;decision;label;given", f'1;relabel;"{label}";{given}')
    clean(run, path, tmp_path / "clean.csv", decisions=decisions)
    expected = path.read_text().replace(f'"{names[1]}"', f'"{names[0]}"')
    assert (tmp_path / "clean.csv").read_text() == expected


def test_a_name_that_is_spelled_like_two_classes_is_neither(tmp_path):
    names = ("yes", "Yes", "no")
    run, path = run_of(tmp_path, [0, 1, 2], [0, 1, 0], names), csv_of(tmp_path, names)
    decisions = write(tmp_path / "decisions.csv", HEADER, "2,relabel,YES,NO")
    with pytest.raises(ValueError, match="line 2: expected a class as label, one of 'yes', 'Yes', 'no', found 'YES'"):
        clean(run, path, tmp_path / "clean.csv", decisions=decisions)


def test_a_name_of_several_classes_is_none_to_give(tmp_path):
    run, path = run_of(tmp_path, names=("x", "x ", "y")), csv_of(tmp_path, LABELS)
    decisions = write(tmp_path / "decisions.csv", HEADER, "0,drop,,x", "4,relabel,x,y")
    with pytest.raises(ValueError, match=r"line 3: 'x' is the name of several classes: expected one\. Rename them"):
        clean(run, path, tmp_path / "clean.csv", decisions=decisions)
    write(decisions, HEADER, "0,drop,,x", "4,relabel,1,y", "1,relabel,y,x")  # 1 as the file writes it
    clean(run, path, tmp_path / "clean.csv", decisions=decisions)
    assert (tmp_path / "clean.csv").read_text() == csv_of(tmp_path, [0, 2, 2, 0, 1, 1]).read_text().replace(
        "text 0,0\n", ""
    )


def test_a_decision_about_the_largest_ids(tmp_path):
    ids, labels = 2**63 - 6 + np.arange(6), np.minimum(LABELS, 1)
    store = LogitsStore.create(tmp_path / "_logits", 2**63, (2,), "float32", "test", ids)
    store.write_labels(labels)
    store.record(0, ids, np.zeros((6, 2), np.float32))
    store.seal(0)
    path = write(tmp_path / "train.csv", "text,label,sample_id", *(f"t,{labels[i]},{ids[i]}" for i in range(6)))
    decisions = write(tmp_path / "decisions.csv", "sample_id,decision", f"{ids[-1]},drop")
    assert clean(tmp_path, path, tmp_path / "clean.csv", decisions=decisions).dropped == 1
    with pytest.raises(ValueError, match=r"line 2: expected the id of a sample .* found '9999999999999999999'"):
        clean(tmp_path, path, tmp_path / "b.csv", decisions=write(decisions, HEADER, "9999999999999999999,drop,,"))


def test_names_that_a_spreadsheet_would_take_for_formulas(tmp_path):
    """The page puts an apostrophe in front of them. A name that begins with one itself takes precedence."""
    names = ("=no", "'yes", "+1")
    run = run_of(tmp_path, names=names)
    path = csv_of(tmp_path, [names[label] for label in LABELS])
    lines = ("0,relabel,'+1,'=no", "1,relabel,'=no,'yes", "3,relabel,'yes,'=no")
    decisions = write(tmp_path / "decisions.csv", "sample_id,decision,label,given", *lines)
    clean(run, path, tmp_path / "clean.csv", decisions=decisions)
    expected = csv_of(tmp_path, [names[label] for label in (2, 0, 2, 1, 2, 1)], "expected.csv")
    assert (tmp_path / "clean.csv").read_bytes() == expected.read_bytes()


def test_two_runs_are_compared_by_command(run, tmp_path, capsys):
    pytest.importorskip("plotly")
    other = run_of(tmp_path / "other", predicted=LABELS)
    cli.main(["report", str(run), str(other)])
    assert capsys.readouterr().out == f"The comparison is {other / '_report' / 'comparison.html'}.\n"
    assert (other / "_report" / "comparison.html").is_file()
    stores = [str(folder / "_logits") for folder in (run, other)]
    cli.main(["report", str(run), str(other), "--logits_dir", *stores])
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(run), str(other), "--logits_dir", stores[0]])
    assert end.value.code == 2
    assert "--logits_dir names 1 folders: expected 2, one for each run" in capsys.readouterr().err


HEADER = "sample_id,decision,label,given"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, "6,drop,,"], r"line 2: expected the id of a sample that is in the run .*found '6'"),
        ([HEADER, "1,keep,,", "x,drop,,"], r"line 3: expected the id .*found 'x'"),
        ([HEADER, "-1,drop,,"], r"line 2: expected the id .*found '-1'"),
        ([HEADER, "1.5,drop,,"], r"line 2: expected the id .*found '1\.5'"),
        ([HEADER, "0000000000000001.0,drop,,"], r"line 2: expected the id .*found '0000000000000001\.0'"),
        ([HEADER, "1,delete,,"], r"line 2: expected keep, relabel or drop as decision, found 'delete'"),
        ([HEADER, "1,,,"], r"line 2: expected keep, relabel or drop as decision, found ''"),
        ([HEADER, "1,relabel,angry,"], r"line 2: expected a class as label, one of 'negative', .* found 'angry'"),
        ([HEADER, "1,relabel,,"], r"line 2: expected a class as label, .* found ''"),
        ([HEADER, "1,drop,,negative"], r"line 2: the decision was made about the label 'negative', .*has 'positive'"),
        ([HEADER, "1,drop,,", "2,keep,,", "1,keep,,"], r"line 4: sample id 1 has a decision in line 2 already"),
        (["id,decision", "1,drop"], r"line 1: expected one column 'sample_id', found the columns 'id', 'decision'"),
        (["sample_id,decision,decision", "1,drop,keep"], r"line 1: expected one column 'decision'"),
        ([f"{HEADER},label", "1,relabel,neutral,,negative"], r"line 1: expected one column 'label', found 2\. Rename"),
        ([], r"line 1: expected one column 'sample_id'"),
        ([HEADER, '1,"drop,,'], r"line 2: the row that begins here cannot be split"),
    ],
)
def test_decisions_that_cannot_be_followed_are_refused_with_their_row(run, tmp_path, capsys, lines, message):
    path, decisions = csv_of(tmp_path), write(tmp_path / "decisions.csv", *lines)
    output = tmp_path / "clean.csv"
    with pytest.raises(ValueError, match=message):
        clean(run, path, output, decisions=decisions)
    with pytest.raises(SystemExit) as end:
        cli.main(["clean", str(run), "--dataset", str(path), "--decisions", str(decisions), "--output", str(output)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lstsd clean: error: {decisions}, line ")
    assert said.count("\n") == 1
    assert not output.exists()


# ---- nothing else changes

CSV = (
    'id,"label",text,sample_id',
    '7,"01","a, b\r\nand ""c"" \r d",5',
    "",
    '8, 02 ,"",4',
    "   ",
    '0x1,01,"caf\u00e9",3',
    '9,"02",null,2',
    "10,02,NA,1",
    '"11",01,"last",0',
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("is_ended", [False, True])
def test_cells_of_a_csv_file_stay_byte_for_byte(tmp_path, end, bom, is_ended):
    """Ids in another order, quotes where none are needed, blank lines, spaces, and a last line without an end."""
    run = run_of(tmp_path, [0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0], ("no", "yes"))
    path = write(tmp_path / "train.csv", *CSV, end=end, bom=bom)
    content = path.read_bytes() if is_ended else path.read_bytes().removesuffix(end.encode())
    path.write_bytes(content)
    clean(run, path, tmp_path / "kept.csv", drop=True, min_score=1.0)
    assert (tmp_path / "kept.csv").read_bytes() == content
    clean(run, path, tmp_path / "relabelled.csv", relabel=True)
    assert (tmp_path / "relabelled.csv").read_bytes() == content.replace(b'"11",01', b'"11",02')
    decisions = write(tmp_path / "decisions.csv", "sample_id;decision", "5;drop", "1;drop")
    clean(run, path, tmp_path / "dropped.csv", decisions=decisions)
    first, second = (line.encode() + end.encode() for line in (CSV[1], CSV[7]))
    assert (tmp_path / "dropped.csv").read_bytes() == content.replace(first, b"").replace(second, b"")


def test_lines_that_only_returns_end(run, tmp_path):
    path = write(tmp_path / "train.csv", "text,label", *(f"t,{label}" for label in ROWS), end="\r")
    clean(run, path, tmp_path / "clean.csv", drop=True)
    kept = [label for i, label in enumerate(ROWS) if i not in (1, 4)]
    assert (tmp_path / "clean.csv").read_bytes() == "".join(
        f"{line}\r" for line in ("text,label", *(f"t,{label}" for label in kept))
    ).encode()


def test_quotes_are_text_in_a_tsv_file_unless_said(run, tmp_path):
    path = write(tmp_path / "train.tsv", "label\ttext", *(f'{label}\t"{i} said' for i, label in enumerate(ROWS)))
    clean(run, path, tmp_path / "clean.tsv", relabel=True)
    expected = path.read_text().replace('positive\t"1', 'negative\t"1').replace('neutral\t"4', 'positive\t"4')
    assert (tmp_path / "clean.tsv").read_text() == expected
    quoted = write(tmp_path / "quoted.tsv", "label\ttext", *(f'"{label}"\t"a\tb\nc"' for label in ROWS))
    clean(run, quoted, tmp_path / "clean2.tsv", drop=True, tsv_quoting=True)
    assert (tmp_path / "clean2.tsv").read_text().count('\t"a\tb\nc"\n') == 4


@pytest.mark.parametrize(
    ("start", "between", "end"),
    [("", "\n", "\n"), ("", "\r\n", ""), ("[", ",", "]"), ("\ufeff [\n  ", ",\n  ", "\n]\n"), ("", " ", "")],
)
@pytest.mark.parametrize("spelling", [tuple(map(json.dumps, NAMES)), ("0", "1", "2"), ('"\\u0061"', '"b"', "2.0")])
def test_json_keeps_its_keys_order_and_spelling(tmp_path, start, between, end, spelling):
    run = run_of(tmp_path)

    def write_json(name: str, labels: list[int], ids: list[int]) -> Path:
        objects = [
            f'{{"x": {{"label": [1e3, 9]}}, "text" :"t\\u00e9 {i}", "label":  {spelling[label]} , "n": 1.50}}'
            for i, label in zip(ids, labels, strict=True)
        ]
        (tmp_path / name).write_bytes((start + between.join(objects) + end).encode())
        return tmp_path / name

    ids = list(range(6))
    path = write_json("train.json", LABELS, ids)
    clean(run, path, tmp_path / "relabelled.json", relabel=True)
    assert (tmp_path / "relabelled.json").read_bytes() == write_json("a.json", [0, 0, 2, 0, 1, 1], ids).read_bytes()
    decisions = write(tmp_path / "decisions.csv", "sample_id,decision", "0,drop", "3,drop", "5,drop")
    clean(run, path, tmp_path / "dropped.json", decisions=decisions)
    assert (tmp_path / "dropped.json").read_bytes() == write_json("b.json", [1, 2, 2], [1, 2, 4]).read_bytes()


def test_several_lists_in_a_json_file_are_refused(run, tmp_path):
    objects = [json.dumps({"text": "t", "label": label}) for label in ROWS]
    path = tmp_path / "train.json"
    path.write_text("\n".join(f"[{text}]" for text in objects))
    with pytest.raises(ValueError, match=r"train\.json: expected one list of objects, or .* found several lists"):
        clean(run, path, tmp_path / "clean.json", drop=True)
    path.write_text("\n".join([*objects[:5], f"[{objects[5]}]"]))
    with pytest.raises(ValueError, match=r"train\.json: expected one list of objects"):
        clean(run, path, tmp_path / "clean.json", drop=True)
    assert not list(tmp_path.glob("*clean*"))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_parquet_keeps_its_schema_metadata_and_compression(run, tmp_path, kind):
    label = pa.field("label", kind, nullable=False, metadata={"what": "labels"})
    schema = pa.schema([("a.b", pa.list_(pa.int16())), label, ("t", pa.timestamp("ms"))], {"mine": "kept"})
    table = pa.table(
        [
            pa.array([[i] for i in range(6)], pa.list_(pa.int16())),
            pa.array(ROWS).cast(kind),
            pa.array(range(6), pa.timestamp("ms")),
        ],
        schema=schema,
    )
    path, output = tmp_path / "train.parquet", tmp_path / "clean.parquet"
    pq.write_table(
        table, path, compression={"a.b.list.element": "none", "label": "zstd", "t": "gzip"}, row_group_size=4
    )
    clean(run, path, output, relabel=True)
    found = pq.read_table(output)
    assert found.schema.equals(pq.read_table(path).schema, check_metadata=True)
    assert found["label"].to_pylist() == ["negative", "negative", "neutral", "negative", "positive", "positive"]
    assert found.drop(["label"]).equals(table.drop(["label"]))
    metadata = [pq.ParquetFile(file).metadata for file in (path, output)]
    assert [[m.row_group(0).column(i).compression for i in range(3)] for m in metadata][1] == [
        "UNCOMPRESSED",
        "ZSTD",
        "GZIP",
    ]
    assert metadata[0].num_row_groups == metadata[1].num_row_groups == 2
    clean(run, path, tmp_path / "dropped.parquet", drop=True)
    rows = [0, 2, 3, 5]
    assert pq.read_table(tmp_path / "dropped.parquet").equals(pa.concat_tables([table.slice(i, 1) for i in rows]))


@pytest.mark.parametrize("name", ["s3:a.parquet", "file:a.parquet", b"caf\xe9.parquet"])
def test_names_of_parquet_files_are_taken_as_they_stand(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    path.write_bytes(pq_bytes := parquet_of(pa.table({"text": ["t"] * 6, "label": ROWS})))
    assert clean(run, path, "clean.parquet", drop=True).dropped == 2
    path.rename("old.parquet")
    clean(run, "old.parquet", path, drop=True)
    assert path.read_bytes() == Path("clean.parquet").read_bytes() != pq_bytes


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_parquet_with_timestamps_as_spark_writes_them(run, tmp_path):
    path, output = tmp_path / "train.parquet", tmp_path / "clean.parquet"
    table = pa.table({"label": ROWS, "at": pa.array(range(6), pa.timestamp("ns"))})
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, version="1.0", store_schema=False)
    clean(run, path, output, drop=True)
    assert pq.read_table(output).equals(table.take([0, 2, 3, 5]))
    assert pq.ParquetFile(output).schema.equals(pq.ParquetFile(path).schema)


def test_parquet_whose_first_row_group_is_empty(run, tmp_path):
    table = pa.table({"text": ["t"] * 6, "label": ROWS})
    with pq.ParquetWriter(tmp_path / "train.parquet", table.schema) as file:
        file.write_table(table[:0])
        file.write_table(table)
    clean(run, tmp_path / "train.parquet", tmp_path / "clean.parquet", drop=True)
    assert pq.read_table(tmp_path / "clean.parquet")["label"].to_pylist() == [ROWS[i] for i in (0, 2, 3, 5)]


def test_white_space_in_quotes_is_a_row(tmp_path):
    run = run_of(tmp_path, [0, 1], [0, 0], ("a", "b"))
    path = write(tmp_path / "train.csv", "sample_id", "0", " ", "1")
    clean(run, path, tmp_path / "clean.csv", drop=True)
    assert (tmp_path / "clean.csv").read_text() == "sample_id\n0\n \n"
    with pytest.raises(ValueError, match="data row 2: expected a sample id"):
        clean(run, write(path, "sample_id", "0", '" "', "1"), tmp_path / "again.csv", drop=True)


def test_a_folder_keeps_its_features_and_its_other_splits(run, tmp_path):
    features = Features({"label": ClassLabel(names=list(NAMES)), "text": Value("large_string")})
    data = Dataset.from_dict({"label": LABELS, "text": [f"t{i}" for i in range(6)]}, features=features)
    DatasetDict({"train": data.with_format("numpy"), "test": data.select([3])}).save_to_disk(tmp_path / "data")
    done = clean(run, tmp_path / "data", tmp_path / "clean", relabel=True)
    found = load_from_disk(tmp_path / "clean")
    assert found["train"].features == features
    assert found["train"].format["type"] == "numpy"
    assert found["train"].with_format(None).to_dict() == {
        "label": [0, 0, 2, 0, 1, 1],
        "text": [f"t{i}" for i in range(6)],
    }
    assert found["test"].to_dict() == data.select([3]).to_dict()
    assert done.relabelled == {("positive", "negative"): 1, ("neutral", "positive"): 1}
    found["train"].save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"2 of 6 labels in 'label' are not those that the run was trained on"):
        clean(run, tmp_path / "one", tmp_path / "again", drop=True)
    data.save_to_disk(tmp_path / "single")
    clean(run, tmp_path / "single", tmp_path / "dropped", drop=True)
    assert load_from_disk(tmp_path / "dropped").to_dict() == data.select([0, 2, 3, 5]).to_dict()
    assert load_from_disk(tmp_path / "single").to_dict() == data.to_dict()


# ---- the file's own spelling


@pytest.mark.parametrize("spelling", [("0", "1", "2"), ("01", "02", "03"), ("n", "\u00fc, p", 'x "y"')])
def test_a_new_label_is_spelled_as_the_file_spells_it(run, tmp_path, spelling):
    cells = [f'"{cell}"'.replace('x "y"', 'x ""y""') if " " in cell else cell for cell in spelling]
    path = csv_of(tmp_path, [cells[label] for label in LABELS])
    clean(run, path, tmp_path / "clean.csv", relabel=True)
    expected = csv_of(tmp_path, [cells[label] for label in (0, 0, 2, 0, 1, 1)], "expected.csv")
    assert (tmp_path / "clean.csv").read_bytes() == expected.read_bytes()
    decisions = write(tmp_path / "decisions.csv", "sample_id\tdecision\tlabel", f"0\trelabel\t{cells[1]}")
    clean(run, path, tmp_path / "decided.csv", decisions=decisions)
    assert (tmp_path / "decided.csv").read_text() == path.read_text().replace(f"0,{cells[0]}", f"0,{cells[1]}", 1)


def test_the_label_that_was_learnt_is_corrected_where_another_column_says_the_same(tmp_path):
    """The next `lstsd train` would learn that column again, and clean would have corrected the other."""
    run, labels = run_of(tmp_path / "run"), enumerate(zip(ROWS, LABELS, strict=True))
    path = write(
        tmp_path / "train.csv", "text,label,labels,sample_id", *(f"t {i},{a},{b},{i}" for i, (a, b) in labels)
    )
    clean(run, path, tmp_path / "by_trainer.csv", relabel=True)
    assert "t 1,positive,0,1\n" in (tmp_path / "by_trainer.csv").read_text()  # a Trainer's labels are "labels"
    for learnt, line in (("label", "t 1,negative,1,1\n"), ("labels", "t 1,positive,0,1\n")):
        LogitsStore.open(run / "_logits").write_texts({"text": "of a file"}, learnt)
        clean(run, path, tmp_path / f"{learnt}.csv", relabel=True)
        assert line in (tmp_path / f"{learnt}.csv").read_text()
    clean(run, path, tmp_path / "named.csv", relabel=True, label_column="labels")
    assert (tmp_path / "named.csv").read_bytes() == (tmp_path / "by_trainer.csv").read_bytes()


def test_a_class_that_no_row_has_cannot_be_given(tmp_path):
    run = run_of(tmp_path, [0, 1, 0, 0, 1, 1], PREDICTED)
    path = csv_of(tmp_path, ["negative", "positive", "negative", "negative", "positive", "positive"])
    with pytest.raises(ValueError, match="no row has the class 'neutral', so how 'label' would write it is not known"):
        clean(run, path, tmp_path / "clean.csv", relabel=True)


def test_rows_that_were_held_out_stay(tmp_path):
    run = run_of(tmp_path, [0, 1, -100, 0, 2, -100], PREDICTED)
    path = csv_of(tmp_path)
    assert clean(run, path, tmp_path / "clean.csv", drop=True).rows == 6
    assert (tmp_path / "clean.csv").read_text().count("\n") == 5
    decisions = write(tmp_path / "decisions.csv", "sample_id,decision", "2,drop")
    with pytest.raises(ValueError, match="expected the id of a sample that is in the run"):
        clean(run, path, tmp_path / "decided.csv", decisions=decisions)


def test_scores_are_dropped_and_never_relabelled(tmp_path):
    store = LogitsStore.create(tmp_path / "_logits", 5, (1,), "float32", "test")
    store.write_labels(np.array([0.1, 0.2, 0.3, 0.4, 5.0], np.float32))
    store.record(0, np.arange(5), np.array([[0.1], [0.2], [0.3], [0.4], [0.5]]))
    store.seal(0)
    path = csv_of(tmp_path, [0.1, 0.2, 0.3, 0.4, 5.0])
    assert clean(tmp_path, path, tmp_path / "clean.csv", drop=True).dropped == 1
    assert "5.0" not in (tmp_path / "clean.csv").read_text()
    with pytest.raises(ValueError, match="holds scores: expected classes to relabel"):
        clean(tmp_path, path, tmp_path / "again.csv", relabel=True)
    decisions = write(tmp_path / "decisions.csv", HEADER, "4,relabel,0.5,5")
    with pytest.raises(ValueError, match="line 2: a score cannot be relabelled"):
        clean(tmp_path, path, tmp_path / "again.csv", decisions=decisions)
    with pytest.raises(ValueError, match="made about the label '4', and sample id 4 has '5'"):
        clean(tmp_path, path, tmp_path / "again.csv", decisions=write(decisions, HEADER, "4,drop,,4"))
    write(decisions, HEADER.replace(",", ";"), "3;drop;;0,4", "4;keep;;5,0")  # as in a language with decimal commas
    assert clean(tmp_path, path, tmp_path / "again.csv", decisions=decisions).dropped == 1


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing says what to do with labels that look wrong: expected drop"),
        ({"drop": True, "relabel": True}, "drop and relabel: expected one of them"),
        ({"drop": True, "min_score": 1.5}, r"min_score=1\.5 is not allowed: expected a number from 0 to 1"),
        ({"drop": True, "min_score": float("nan")}, "min_score=nan is not allowed"),
        ({"drop": True, "min_score": 0.0}, "all of the 6 rows would be dropped: expected some to stay"),
        ({"decisions": "decisions.csv", "min_score": 0.9}, "min_score beside decisions: expected one of them"),
        ({"decisions": "nowhere.csv"}, r"nowhere\.csv: no such file: expected decisions"),
        ({"decisions": "."}, r"\.: not a file: expected decisions"),
        ({"drop": True, "split": "dev"}, "split='dev' goes with a folder that has several: found the file"),
        ({"drop": True, "label_column": "gold"}, "has no column 'gold'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        clean(run, csv_of(tmp_path), tmp_path / "clean.csv", **options)
    assert not (tmp_path / "clean.csv").exists()


def test_nothing_is_written_over(run, tmp_path, capsys):
    path = csv_of(tmp_path)
    content = path.read_bytes()
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere.csv")
    (tmp_path / "file").touch()
    for output in (path, tmp_path / "link.csv"):
        with pytest.raises(SystemExit) as end:
            cli.main(["clean", str(run), "--dataset", str(path), "--drop", "-o", str(output)])
        assert end.value.code == 2
        assert capsys.readouterr().err == (
            f"lstsd clean: error: {output} exists: expected a new name. Nothing is written over: move it aside, or "
            "choose another.\n"
        )
    for output, message in (
        (tmp_path / "clean.tsv", r"expected a name that ends in \.csv"),
        (tmp_path / "none" / "clean.csv", "none: no such folder: expected one to write"),
        (tmp_path / "file" / "clean.csv", "file: not a folder: expected one to write"),
    ):
        with pytest.raises(ValueError, match=message):
            clean(run, path, output, drop=True)
    data = Dataset.from_dict({"label": LABELS})
    data.save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="the data set itself: expected another folder"):
        clean(run, tmp_path / "data", tmp_path / "data" / "clean", drop=True)
    assert path.read_bytes() == content
    assert not [file for file in tmp_path.iterdir() if "tmp" in file.name]


def test_labels_that_are_no_single_values_are_said_to_be(run, tmp_path):
    lines = [json.dumps({"text": "t", "label": [label]}) for label in ROWS]
    with pytest.raises(ValueError, match="has no column 'sample_id', and its labels in 'label' are lists or bytes"):
        clean(run, write(tmp_path / "train.json", *lines), tmp_path / "clean.json", drop=True)


def test_other_rows_than_the_runs_are_refused(run, tmp_path, capsys):
    path = csv_of(tmp_path, ROWS[::-1])
    with pytest.raises(SystemExit) as end:
        cli.main(["clean", str(run), "--dataset", str(path), "--drop", "-o", str(tmp_path / "clean.csv")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "labels in 'label' are not those that the run was trained on" in said
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match="expected sample ids, or the rows that were trained on in their order"):
        clean(run, csv_of(tmp_path, ROWS[:4]), tmp_path / "clean.csv", drop=True)


@pytest.mark.parametrize("labels", [np.eye(3, dtype=np.float32)[LABELS], np.eye(3, dtype=np.int64)[LABELS]])
def test_rows_of_probabilities_stand_for_the_classes_that_the_file_names(tmp_path, labels):
    store = LogitsStore.create(tmp_path / "_logits", 6, (3,), "float32", "test")
    store.write_labels(labels)
    store.record(0, np.arange(6), np.eye(3)[PREDICTED])
    store.seal(0)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES))}))
    done = clean(tmp_path, csv_of(tmp_path), tmp_path / "clean.csv", drop=True)
    assert (done.rows, done.dropped) == (6, 2)


# ---- on real runs


def test_flipped_labels_of_a_recorded_run_are_found_and_mended(tmp_path):
    """From a data set to a cleaned folder, in which every label is right."""
    # Each text repeats one word, and many rows share it, so that the model cannot learn an exception by heart.
    tokens = np.repeat(np.arange(240) % 6 + 1, 4).reshape(240, 4)
    true = tokens[:, 0] % 3
    data = add_sample_ids(Dataset.from_dict({"input_ids": tokens, "attention_mask": np.ones_like(tokens)}))
    flipped = np.random.default_rng(0).choice(240, 12, replace=False)
    given = true.copy()
    given[flipped] = (given[flipped] + 1) % 3
    data = data.add_column("label", given).shuffle(seed=0)
    args = config(tmp_path / "run", num_train_epochs=6, learning_rate=5e-3, optim="adamw_torch", logging_steps=50)
    PredictionRecorder(Trainer)(tiny_bert(dropout=0.0), args, train_dataset=data).train()
    data.save_to_disk(tmp_path / "data")
    done = clean(tmp_path / "run", tmp_path / "data", tmp_path / "clean", relabel=True)
    found = load_from_disk(tmp_path / "clean")
    assert found["sample_id"][:] == data["sample_id"][:]
    labels = np.array(found["label"])[np.argsort(found["sample_id"])]
    assert np.array_equal(labels, true)
    assert sum(done.relabelled.values()) == 12
    assert found.remove_columns("label").to_dict() == data.remove_columns("label").to_dict()


def test_from_a_file_to_a_cleaned_file_and_a_run_on_it(model, tmp_path, capsys):
    """The commands of the whole loop, on a CSV file without ids."""
    lines = [f'"the film was, {(BAD, GOOD)[i % 2][i // 2 % 4]}",{("bad", "good")[i % 2]}' for i in range(64)]
    wrong = (10, 31)
    for row in wrong:
        lines[row] = lines[row].rpartition(",")[0] + "," + ("good", "bad")[row % 2]
    path = write(tmp_path / "train.csv", "text,label", *lines)
    common = [
        "--model_name_or_path",
        model,
        "--num_train_epochs",
        "8",
        "--learning_rate",
        "5e-3",
        "--use_cpu",
        "--do_train",
    ]
    common += ["--report_to", "none", "--per_device_train_batch_size", "8", "--logits_retention", "all"]
    main(["--train_file", str(path), "--output_dir", str(tmp_path / "out"), *common])
    output = tmp_path / "clean.csv"
    cli.main(["clean", str(tmp_path / "out"), "--dataset", str(path), "--drop", "-o", str(output)])
    assert output.read_text().splitlines() == ["text,label", *(line for i, line in enumerate(lines) if i not in wrong)]
    main(["--train_file", str(output), "--output_dir", str(tmp_path / "again"), *common])
    assert not clean(tmp_path / "again", output, tmp_path / "once_more.csv", drop=True).dropped


@pytest.mark.parametrize("name", ["n" * 248 + ".csv", "\u00e9" * 125 + "x.csv"])
def test_a_name_as_long_as_a_name_may_be(run, tmp_path, name):
    path = csv_of(tmp_path)
    clean(run, path, tmp_path / name, drop=True, min_score=0.5)
    assert (tmp_path / name).is_file()
    assert not [file for file in tmp_path.iterdir() if "tmp" in file.suffix]
