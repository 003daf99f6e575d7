"""GLUE's own files, and the user's."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Value

from lstsd_hf.glue.arguments import DataArguments
from lstsd_hf.glue.data import GlueData, load_files, load_task, load_tsv_split, read_tsv
from lstsd_hf.glue.tasks import TASKS

GLUE = Path(__file__).parents[2] / "shared" / "glue"
real_glue = pytest.mark.skipif(not GLUE.is_dir(), reason=f"the GLUE files are not there: {GLUE}")


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding=encoding, newline="\n")
    return path


# --- GLUE's own layout: the real files ---


@real_glue
@pytest.mark.parametrize(
    ("task_name", "train", "dev", "test", "text_columns", "first_train_label", "dev_labels"),
    [
        # dev_labels is the number of rows for each label; for stsb it is the sum of the scores.
        ("cola", 8551, 1043, 1063, ["sentence"], 1, {0: 322, 1: 721}),
        ("mrpc", 3667, 408, 1725, ["sentence1", "sentence2"], 1, {0: 129, 1: 279}),
        ("rte", 2490, 277, 3000, ["sentence1", "sentence2"], 1, {0: 146, 1: 131}),
        ("sst2", 67349, 872, 1821, ["sentence"], 0, {0: 428, 1: 444}),
        ("stsb", 5749, 1500, 1379, ["sentence1", "sentence2"], 5.0, 3545.7),
        ("wnli", 635, 71, 146, ["sentence1", "sentence2"], 1, {0: 40, 1: 31}),
    ],
)
def test_real_files(
    task_name: str,
    train: int,
    dev: int,
    test: int,
    text_columns: list[str],
    first_train_label: float,
    dev_labels: Any,
) -> None:
    splits = {split: load_tsv_split(task_name, GLUE, split) for split in ("train", "validation", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": train, "validation": dev, "test": test}
    for rows in splits.values():
        assert rows.column_names == [*text_columns, "label", "idx"]
        assert rows.features["idx"] == Value("int32")
        assert rows["idx"][:3] == [0, 1, 2]
    assert splits["train"][0]["label"] == first_train_label
    assert set(splits["test"]["label"]) == {-1}
    found = splits["validation"]["label"]
    if task_name == "stsb":
        assert splits["validation"].features["label"] == Value("float32")
        assert sum(found) == pytest.approx(dev_labels, abs=1)
        assert 0 <= min(found) < max(found) <= 5
    else:
        assert splits["validation"].features["label"] == ClassLabel(names=list(TASKS[task_name].labels))
        assert {label: found[:].count(label) for label in set(found)} == dev_labels


@real_glue
def test_texts_of_real_files() -> None:
    cola = load_tsv_split("cola", GLUE, "train")[0]
    assert cola["sentence"] == "Our friends won't buy this analysis, let alone the next one we propose."
    mrpc = load_tsv_split("mrpc", GLUE, "train")[0]
    # A quote is an ordinary character, and the byte-order mark is not part of the first column's name.
    assert mrpc["sentence1"].startswith('Amrozi accused his brother , whom he called " the witness " ,')
    assert mrpc["sentence2"].startswith('Referring to him as only " the witness " , Amrozi')
    rte = load_tsv_split("rte", GLUE, "train")[0]
    assert rte["sentence1"] == "No Weapons of Mass Destruction Found in Iraq Yet."
    assert rte["label"] == TASKS["rte"].labels.index("not_entailment")


# --- GLUE's own layout: the tasks that are not among the real files ---

MNLI_HEADER = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A folder with small MNLI, QNLI and QQP files."""
    mnli = tmp_path / "MNLI"
    rows = [
        f"{i}\t{i}p\t{i}c\tfiction\tpremise {i}\thypothesis {i}\tneutral\t{label}"
        for i, label in enumerate(["neutral", "contradiction", "entailment"])
    ]
    write(mnli / "train.tsv", MNLI_HEADER, *rows)
    write(mnli / "dev_matched.tsv", MNLI_HEADER, *rows[:2])
    write(mnli / "dev_mismatched.tsv", MNLI_HEADER, *rows[2:])
    for name, first in (("test_matched", 0), ("test_mismatched", 100)):
        header = MNLI_HEADER.rsplit("\t", 2)[0]
        write(mnli / f"{name}.tsv", header, *(f"{first + i}\tp\tc\tfiction\tfar\tnear" for i in range(2)))
    qnli = ["0\tWho?\tShe did.\tentailment", '1\tWhen "exactly?\tIn May.\tnot_entailment']
    write(tmp_path / "QNLI" / "train.tsv", "index\tquestion\tsentence\tlabel", *qnli)
    write(tmp_path / "QNLI" / "dev.tsv", "index\tquestion\tsentence\tlabel", *qnli)
    write(tmp_path / "QNLI" / "test.tsv", "index\tquestion\tsentence", "0\tWho?\tHe did.")
    qqp = ["133273\t213221\t213222\tHow old?\tWhat age?\t1", "402555\t536040\t536041\tWhy?\tWhere?\t0"]
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path / "QQP" / "train.tsv", header, *qqp)
    write(tmp_path / "QQP" / "dev.tsv", header, *qqp)
    write(tmp_path / "QQP" / "test.tsv", "id\tquestion1\tquestion2", "7\tHow?\tWhy?", "9\tWho?\tWhat?")
    return tmp_path


def load(layout: Path, task_name: str, **needed: bool) -> GlueData:
    wanted = {"train": False, "evaluation": False, "prediction": False} | needed
    args = DataArguments(task_name=task_name, data_dir=str(layout))
    return load_task(args, **wanted, sample_id_column="sample_id")


def test_mnli_layout(layout: Path) -> None:
    data = load(layout, "mnli", train=True, evaluation=True, prediction=True)
    assert data.train is not None
    assert data.train.to_dict() == {
        "premise": ["premise 0", "premise 1", "premise 2"],
        "hypothesis": ["hypothesis 0", "hypothesis 1", "hypothesis 2"],
        "label": [1, 2, 0],
        "idx": [0, 1, 2],
        "sample_id": [0, 1, 2],
    }
    assert {suffix: rows["label"][:] for suffix, rows in data.evaluation.items()} == {"": [1, 2], "_mm": [0]}
    found = {name: rows["idx"][:] for name, rows in data.prediction.items()}
    assert found == {"MNLI-m.tsv": [0, 1], "MNLI-mm.tsv": [100, 101]}


def test_qnli_layout(layout: Path) -> None:
    data = load(layout, "qnli", train=True, prediction=True)
    assert data.train is not None
    assert data.train["question"][:] == ["Who?", 'When "exactly?']
    assert data.train["sentence"][:] == ["She did.", "In May."]
    assert data.train["label"][:] == [0, 1]
    assert data.evaluation == {}
    assert data.prediction["QNLI.tsv"]["sentence"][:] == ["He did."]


def test_qqp_layout_takes_the_index_from_id(layout: Path) -> None:
    data = load(layout, "qqp", evaluation=True, prediction=True)
    assert data.train is None
    assert data.evaluation[""].to_dict() == {
        "question1": ["How old?", "Why?"],
        "question2": ["What age?", "Where?"],
        "label": [1, 0],
        "idx": [0, 1],
    }
    assert data.prediction["QQP.tsv"]["idx"][:] == [7, 9]


def test_only_the_splits_that_are_needed_are_read(layout: Path) -> None:
    (layout / "QQP" / "train.tsv").unlink()
    (layout / "QQP" / "test.tsv").unlink()
    assert len(load(layout, "qqp", evaluation=True).evaluation[""]) == 2


def test_the_hub_is_read_by_its_name(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` reads a folder with the data set's name, in the current folder, instead of the Hub."""
    repository = tmp_path / "nyu-mll" / "glue"
    for split in ("train", "validation", "test"):
        rows = load_tsv_split("qqp", layout, split)
        (repository / "qqp").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(repository / "qqp" / f"{split}-00000-of-00001.parquet")
    parts = "".join(f"  - split: {name}\n    path: qqp/{name}-*\n" for name in ("train", "validation", "test"))
    card = f"---\nconfigs:\n- config_name: qqp\n  data_files:\n{parts}---\n"
    (repository / "README.md").write_text(card, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    args = DataArguments(task_name="qqp")
    data = load_task(
        args,
        train=True,
        evaluation=True,
        prediction=True,
        sample_id_column="row",
        cache_dir=str(tmp_path / "cache"),
    )
    assert data.train is not None
    assert data.train["label"][:] == [1, 0]
    assert data.train["row"][:] == [0, 1]
    assert data.evaluation[""]["question1"][:] == ["How old?", "Why?"]
    assert data.prediction["QQP.tsv"]["idx"][:] == [7, 9]


def test_a_hub_out_of_reach_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nyu-mll/glue could not be loaded from the Hub .* --data_dir"):
        load_task(
            DataArguments(task_name="rte"),
            train=True,
            evaluation=False,
            prediction=False,
            sample_id_column="sample_id",
            cache_dir=str(tmp_path / "cache"),
        )


def test_rows_of_qqp_with_too_few_fields_are_left_out(layout: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in the Hub's version, in which `idx` stays the row's number in the file."""
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = ["1\t2\t3\tHow?\tWhy?\t1", "4\t5\t6\tWho is", "it?\tWhat?\t0", "", "7\t8\t9\tWhen?\tWhere?\t0"]
    for split in ("train", "dev"):
        write(layout / "QQP" / f"{split}.tsv", header, *lines)
    data = load(layout, "qqp", train=True, evaluation=True)
    assert data.train is not None
    assert data.train.to_dict() == {
        "question1": ["How?", "When?"],
        "question2": ["Why?", "Where?"],
        "label": [1, 0],
        "idx": [0, 3],
        "sample_id": [0, 1],
    }
    assert data.evaluation[""]["idx"][:] == [0, 3]
    for record, split in zip(caplog.records, ("train", "dev"), strict=True):
        assert record.getMessage() == (
            f"{layout / 'QQP' / split}.tsv: 2 rows have too few fields, the first in line 3. They were left out, as "
            "in the Hub's version."
        )
    write(layout / "QQP" / "test.tsv", "id\tquestion1\tquestion2", "7\tHow?\tWhy?", "9\tWho?")
    with pytest.raises(ValueError, match=r"test\.tsv, line 3: expected 3 fields .*, found 2"):
        load(layout, "qqp", prediction=True)
    write(layout / "QQP" / "train.tsv", header, *lines, "1\t2\t3\tHow?\tWhy?\t1\t2")
    with pytest.raises(ValueError, match=r"train\.tsv, line 7: expected 6 fields .*, found 7"):
        load(layout, "qqp", train=True)


# --- what can be wrong with GLUE's own files ---


def test_missing_folder_and_file(layout: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder 'CoLA' in data_dir for cola, found none"):
        load(layout, "cola", train=True)
    (layout / "QNLI" / "dev.tsv").unlink()
    with pytest.raises(ValueError, match=r"dev\.tsv: expected a file in GLUE's TSV layout there, found none"):
        load(layout, "qnli", evaluation=True)


@pytest.mark.parametrize(
    ("task_name", "lines", "message"),
    [
        ("rte", [], r"train\.tsv: expected rows, found an empty file"),
        ("rte", ["index\tsentence1\tsentence2\tlabel"], r"train\.tsv: expected rows, found an empty file"),
        (
            "rte",
            ["index\tsentence1\tlabel", "0\ta\tentailment"],
            r"train\.tsv: expected a column 'sentence2', found the columns 'index', 'sentence1', 'label'",
        ),
        (
            "rte",
            ["index\tsentence1\tsentence2", "0\ta\tb"],
            r"train\.tsv: expected a column 'label', found the columns 'index', 'sentence1', 'sentence2'",
        ),
        (
            "rte",
            ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment", "1\ta\tentailment"],
            r"train\.tsv, line 3: expected 4 fields \(index, sentence1, sentence2, label\), found 3",
        ),
        (
            "rte",
            ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tc\tentailment"],
            r"train\.tsv, line 2: expected 4 fields .*, found 5",
        ),
        ("cola", ["gj04\t1\t\tfine", "gj04\t1\tshort"], r"train\.tsv, line 2: expected 4 fields .*, found 3"),
        (
            "rte",
            ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tneutral"],
            r"train\.tsv, line 2: expected one of entailment, not_entailment as label, found 'neutral'",
        ),
        (
            "sst2",
            ["sentence\tlabel", "fine\t1", "bad\t2"],
            r"train\.tsv, line 3: expected one of 0, 1 as label, found '2'",
        ),
        (
            "stsb",
            ["index\tsentence1\tsentence2\tscore", "0\ta\tb\tfour"],
            r"train\.tsv, line 2: expected a number as score, found 'four'",
        ),
        (
            "stsb",
            ["index\tsentence1\tsentence2\tscore", "0\ta\tb\tnan"],
            r"train\.tsv, line 2: expected a number as score, found 'nan'",
        ),
    ],
)
def test_bad_training_files(tmp_path: Path, task_name: str, lines: list[str], message: str) -> None:
    write(tmp_path / TASKS[task_name].folder / "train.tsv", *lines)
    with pytest.raises(ValueError, match=message):
        load_tsv_split(task_name, tmp_path, "train")


def test_bad_index_in_a_test_file(tmp_path: Path) -> None:
    write(tmp_path / "CoLA" / "test.tsv", "index\tsentence", "0\tfine", "x\tbad")
    with pytest.raises(ValueError, match=r"test\.tsv, line 3: expected a whole number as the index, found 'x'"):
        load_tsv_split("cola", tmp_path, "test")


def test_tsv_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "sentence\tlabel", "caf\u00e9\t1", encoding="latin-1")
    with pytest.raises(ValueError, match=r"x\.tsv: expected UTF-8 text"):
        list(read_tsv(path))


def test_tsv_splits_at_tabs_and_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes('\ufeffa\tb\r\n"one\t1\r\ntw\ro\u2028\t2\n\n'.encode())
    assert list(read_tsv(path)) == [(1, ["a", "b"]), (2, ['"one', "1"]), (3, ["tw\ro\u2028", "2"])]


# --- the user's own files ---


def from_files(tmp_path: Path, seed: int = 0, sample_id_column: str = "sample_id", **arguments: Any) -> GlueData:
    needed = {"train": True, "evaluation": "validation_file" in arguments, "prediction": "test_file" in arguments}
    needed |= {name: arguments.pop(name) for name in list(arguments) if name in needed}
    args = DataArguments(**{name: str(v) if isinstance(v, Path) else v for name, v in arguments.items()})
    return load_files(args, **needed, sample_id_column=sample_id_column, seed=seed)


def test_csv_with_words_as_labels(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label", '"good, ""really""",yes', "null,no", "none,NA")
    dev = write(tmp_path / "dev.csv", "label,text", "no,bad")
    test = write(tmp_path / "test.csv", "text", "what", "ever")
    data = from_files(tmp_path, train_file=train, validation_file=dev, test_file=test)
    assert data.labels == ("NA", "no", "yes")
    assert data.text_columns == ("text",)
    assert data.train is not None
    assert data.train.to_dict() == {
        "text": ['good, "really"', "null", "none"],
        "idx": [0, 1, 2],
        "label": [2, 1, 0],
        "sample_id": [0, 1, 2],
    }
    assert data.train.features["label"] == ClassLabel(names=["NA", "no", "yes"])
    assert data.evaluation[""].to_dict() == {"text": ["bad"], "idx": [0], "label": [1]}
    assert data.prediction["predictions.tsv"].to_dict() == {"text": ["what", "ever"], "idx": [0, 1]}


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    # The file's column `label`, which is not the label here, is dropped.
    train = write(tmp_path / "train.csv", "a,b,stars,label", "x,y,10,0", "x,y,2,0", "x,y,2,0")
    data = from_files(tmp_path, train_file=train, text_columns=["b", "a"], label_column="stars")
    assert data.labels == ("2", "10")
    assert data.text_columns == ("b", "a")
    assert data.train is not None
    assert data.train["label"][:] == [1, 0, 0]


def test_decimal_numbers_are_scores(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *(json.dumps({"text": "x", "label": i / 4}) for i in range(3)))
    dev = write(tmp_path / "dev.jsonl", json.dumps({"text": "x", "label": 1}))
    data = from_files(tmp_path, train_file=train, validation_file=dev)
    assert data.labels == ()
    assert data.train is not None
    assert data.train["label"][:] == [0.0, 0.25, 0.5]
    assert data.evaluation[""].features["label"] == Value("float32")
    assert data.evaluation[""]["label"][:] == [1.0]


def test_json_list_and_pairs(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "extra": "c", "label": True}]
    train = write(tmp_path / "train.json", json.dumps([*rows, rows[0] | {"label": False}]))
    data = from_files(tmp_path, train_file=train)
    assert data.text_columns == ("sentence1", "sentence2")
    assert data.labels == ("False", "True")


def test_quotes_are_text_in_a_tsv_file(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv", "text\tlabel", '"one\t0', 'two"\t1')
    data = from_files(tmp_path, train_file=train)
    assert data.train is not None
    assert data.train["text"][:] == ['"one', 'two"']


def test_where_keeps_rows_and_their_ids(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "words,label,source", "a,0,x", "b,1,y", "c,0,y", ",,x")
    data = from_files(tmp_path, train_file=train, where="source=y")
    assert data.train is not None
    assert data.train.to_dict() == {"words": ["b", "c"], "idx": [1, 2], "label": [1, 0], "sample_id": [1, 2]}


def test_validation_fraction_is_stratified_and_drawn_by_seed(tmp_path: Path) -> None:
    lines = [f"text {i},{'yes' if i % 4 == 0 else 'no'}" for i in range(40)]
    train = write(tmp_path / "train.csv", "text,label", *lines)
    first, again, other = (
        from_files(tmp_path, train_file=train, validation_fraction=0.2, evaluation=True, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.train is not None
    held_out = first.evaluation[""]
    assert sorted(held_out["label"]) == [0] * 6 + [1] * 2
    assert sorted([*first.train["idx"], *held_out["idx"]]) == list(range(40))
    assert first.train["sample_id"][:] == first.train["idx"][:]
    assert held_out["idx"][:] == again.evaluation[""]["idx"][:]
    assert held_out["idx"][:] != other.evaluation[""]["idx"][:]


def test_ids_of_the_users_own_stay(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label,sample_id", "a,0,7", "b,1,3")
    data = from_files(tmp_path, train_file=train)
    assert data.train is not None
    assert data.train["sample_id"][:] == [7, 3]


@pytest.mark.parametrize(
    ("name", "lines", "arguments", "message"),
    [
        ("train.csv", None, {}, r"train\.csv: no such file"),
        (
            "train.csv",
            ["text,label", "a,0", "b,1"],
            {"where": "text=a"},
            r"beside .*\(text, label\), found none",
        ),
        ("train.txt", ["text,label", "a,1"], {}, r"train\.txt: expected a folder, or a file that ends in \.csv"),
        ("train.csv", [], {}, r"train\.csv: expected a header and rows, found an empty file"),
        ("train.csv", ["text,label"], {}, r"train\.csv: expected rows, found none"),
        ("train.csv", ["text,label", "a,0", "b,1,2"], {}, r"train\.csv, line 3: expected 2 fields .*, found 3"),
        ("train.json", ['{"text": "a", "label": 1'], {}, r"train\.json: cannot be read as JSON"),
        ("train.csv", ["text,label", "a,0", "b,"], {}, r"train\.csv, data row 2: the cell in 'label' is empty"),
        ("train.csv", ["text,label", ",0", "b,1"], {}, r"train\.csv, data row 1: the cell in 'text' is empty"),
        ("train.jsonl", ['{"text": null, "label": 1}'], {}, r"train\.jsonl, data row 1: the cell in 'text' is empty"),
        ("train.csv", ["text,y", "a,0"], {}, r"train\.csv: expected a column 'label', found the columns 'text', 'y'"),
        (
            "train.json",
            ['[{"text": ["a"], "label": 0}]'],
            {},
            r"train\.json, data row 1: expected text in 'text', found a list",
        ),
        (
            "train.csv",
            ["text,label", "a,0"],
            {"text_columns": ["words"]},
            r"train\.csv: expected a column 'words', found the columns 'text', 'label'",
        ),
        (
            "train.json",
            ['[{"text": "a", "label": [0, 1]}]'],
            {},
            r"train\.json, data row 1: expected one value in 'label', found a list",
        ),
        ("train.jsonl", ['{"text": 1, "label": 0}'], {}, r"jsonl, data row 1: expected text in 'text', found .* 1\."),
        (
            "train.csv",
            ["a,b,label", "x,y,0"],
            {},
            r"train\.csv: which columns are the text\? Name one or two of \['a', 'b'\] with --text_columns",
        ),
        (
            "train.csv",
            ["text,label,source", "a,0,x", "b,0,y"],
            {"where": "source=z"},
            r"train\.csv: no row has 'source=z'\. Values found in 'source': 'x', 'y'",
        ),
        ("train.csv", ["text,label", "a,0"], {"where": "source=z"}, r"train\.csv: expected a column 'source'"),
        ("train.csv", ["text,label", "a,0"], {"evaluation": True}, r"give validation_file or validation_fraction"),
        ("train.csv", ["text,label", "a,0"], {"prediction": True}, r"give test_file"),
        (
            "train.csv",
            ["text,label", "a,0", "b,0"],
            {},
            r"train\.csv: expected at least two labels in 'label', found only '0'",
        ),
        (
            "train.csv",
            ["text,label", "a,0", "b,1"],
            {"validation_fraction": 0.5, "evaluation": True},
            r"validation_fraction=0\.5 cannot be held out of 2 rows",
        ),
    ],
)
def test_bad_files(
    tmp_path: Path, name: str, lines: list[str] | None, arguments: dict[str, Any], message: str
) -> None:
    path = tmp_path / name if lines is None else write(tmp_path / name, *lines)
    with pytest.raises(ValueError, match=message):
        from_files(tmp_path, train_file=path, **arguments)


@pytest.mark.parametrize(
    ("train_labels", "dev_lines", "message"),
    [
        (("yes", "no"), ["text,label", "a,yes", "b,maybe"], r"dev\.csv, data row 2: the label 'maybe' is none of"),
        (("yes", "no"), ["text", "a"], r"dev\.csv: expected a column 'label', found the columns 'text'"),
        (
            ("0.5", "0.7"),
            ["text,label", "a,high"],
            r"dev\.csv, data row 1: expected a number in 'label', found 'high'",
        ),
        (("0.5", "0.7"), ["text,label", "a,1.5", "a,inf"], r"dev\.csv, data row 2: expected a number .*found 'inf'"),
        (("0", "1"), ["sentence,label", "a,1"], r"dev\.csv: expected a column 'text', found the columns 'sentence'"),
    ],
)
def test_validation_that_does_not_fit_training(
    tmp_path: Path, train_labels: tuple[str, str], dev_lines: list[str], message: str
) -> None:
    train = write(tmp_path / "train.csv", "text,label", *(f"x,{label}" for label in train_labels))
    with pytest.raises(ValueError, match=message):
        from_files(tmp_path, train_file=train, validation_file=write(tmp_path / "dev.csv", *dev_lines))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".parquet", ""])
def test_every_format_trains(tmp_path: Path, suffix: str) -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["01", "007", "01"], "n": [1, 2, 3]})
    path = tmp_path / f"train{suffix}"
    if suffix == "":
        datasets.DatasetDict({"train": rows, "validation": rows.select([1]), "test": rows.select([0])}).save_to_disk(
            path
        )
    elif suffix == ".tsv":
        rows.to_csv(path, sep="\t")
    else:
        getattr(rows, f"to_{suffix[1:]}")(path)
    data = from_files(tmp_path, train_file=path, validation_file=path, test_file=path)
    assert data.labels == ("01", "007")
    assert data.train is not None
    assert data.train.to_dict() == {
        "text": ["a", "b", "c"],
        "idx": [0, 1, 2],
        "label": [0, 1, 0],
        "sample_id": [0, 1, 2],
    }
    assert data.evaluation[""]["label"][:] == ([1] if suffix == "" else [0, 1, 0])
    assert data.prediction["predictions.tsv"]["text"][:] == (["a"] if suffix == "" else ["a", "b", "c"])


CLASSES, SCORES = "are taken as names of classes", "are taken as scores"


@pytest.mark.parametrize(
    ("train", "dev", "labels", "line"),
    [
        (["0", "1"], ["1"], ("0", "1"), None),
        (["2", "10", "1", "0", "3"], [], ("0", "1", "2", "3", "10"), CLASSES),
        (["2", "1", "0"], [], ("0", "1", "2"), None),
        (["1", "-1"], [], ("-1", "1"), None),
        (["10", "2", "x", "b"], [], ("2", "10", "b", "x"), r"are taken as names of classes, because 'b' is no score"),
        (["yes", "No", "no"], [], ("No", "no", "yes"), None),
        (["01", "007", "10"], [], ("01", "007", "10"), None),
        (["1e3", "2e3"], [], ("1e3", "2e3"), CLASSES),
        (["0", "1", "null"], [], ("0", "1", "null"), CLASSES),
        (["0", "1", "nan"], [], ("0", "1", "nan"), CLASSES),
        (["True", "False"], [], ("False", "True"), None),
        (["yes", "NA", "no"], [], ("NA", "no", "yes"), rf"{CLASSES}, also 'NA' \(rows: 1\)\. Delete rows without"),
        (["yes", "\\N", "no"], [], ("\\N", "no", "yes"), rf"{CLASSES}, also "),
        ([" 1", "0 ", "1"], ["0"], ("0", "1"), None),
        (
            ["1", "2", "3", "4", "5"],
            ["3"],
            ("1", "2", "3", "4", "5"),
            rf"{CLASSES}\. If they are scores, set label_kind",
        ),
        (["0", "1"], ["0.0", "1.0"], ("0", "1"), None),
        (["3.5", "4.0", "latest"], [], ("3.5", "4.0", "latest"), CLASSES),
        (["0.5", "1.25", "-2"], ["3"], (), None),
        (["1e-3", "5"], [], (), None),
        (
            ["0.0", "1.0"],
            [],
            (),
            rf"{SCORES}, because they are written as decimal numbers\. If they name classes, set",
        ),
        (["1", "2", "3"], ["2.5"], (), rf"{SCORES}, because .*dev\.csv has '2\.5' among its own"),
        ([*(f"{i / 8}" for i in range(40))], [".5", "+1.", "1E-2"], (), None),
    ],
)
def test_what_labels_are_is_decided_for_all_files(
    tmp_path: Path,
    train: list[str],
    dev: list[str],
    labels: tuple[str, ...],
    line: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    files = {"train_file": write(tmp_path / "train.csv", "text,label", *(f"x,{label}" for label in train))}
    if dev:
        files["validation_file"] = write(tmp_path / "dev.csv", "text,label", *(f"x,{label}" for label in dev))
    data = from_files(tmp_path, **files)
    assert data.labels == labels
    kind = ClassLabel(names=list(labels)) if labels else Value("float32")
    assert data.train is not None
    assert data.train.features["label"] == kind
    if labels:
        assert [labels[i] for i in data.train["label"]] == [label.strip() for label in train]
    else:
        assert data.train["label"][:] == pytest.approx([float(label) for label in train], rel=1e-6)
    if dev:
        assert data.evaluation[""].features["label"] == kind
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (line is not None)
    if line is not None:
        assert re.search(line, said[0])
        assert "\n" not in said[0]
        assert said[0].startswith(str(files["train_file"]))


@pytest.mark.parametrize(
    ("labels", "kind", "names", "values"),
    [
        (["0.0", "1.0", "0.0"], "classes", ("0.0", "1.0"), [0, 1, 0]),
        (["10.5", "2.5"], "classes", ("2.5", "10.5"), [1, 0]),
        (["1", "2", "5"], "scores", (), [1.0, 2.0, 5.0]),
        (["007", "1e3"], "scores", (), [7.0, 1000.0]),
    ],
)
def test_a_flag_decides_what_labels_are(
    tmp_path: Path,
    labels: list[str],
    kind: str,
    names: tuple[str, ...],
    values: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = write(tmp_path / "train.csv", "text,label", *(f"x,{label}" for label in labels))
    data = from_files(tmp_path, train_file=train, label_kind=kind)
    assert data.labels == names
    assert data.train is not None
    assert data.train["label"][:] == values
    assert not caplog.records


def test_labels_of_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def labels_of(*labels: Any) -> tuple[tuple[str, ...], list[Any]]:
        rows = (json.dumps({"text": "x", "label": label}) for label in labels)
        data = from_files(tmp_path, train_file=write(tmp_path / "train.jsonl", *rows))
        assert data.train is not None
        return data.labels, data.train["label"][:]

    assert labels_of(1, 0, 1) == (("0", "1"), [1, 0, 1])
    assert labels_of("1", "0") == (("0", "1"), [1, 0])
    assert labels_of(True, False) == (("False", "True"), [1, 0])
    assert labels_of(0.5, 1) == ((), [0.5, 1.0])
    assert not caplog.records
    assert labels_of("0.5", "1.25") == ((), [0.5, 1.25])
    (record,) = caplog.records
    assert "are taken as scores, because they are numbers, though written as text. If they name" in record.getMessage()
    caplog.clear()
    assert labels_of("a", 1) == (("1", "a"), [1, 0])
    assert "are taken as names of classes, because 'a' is no score" in caplog.records[0].getMessage()


def test_class_labels_keep_their_order_and_meet_names_in_other_files(tmp_path: Path) -> None:
    kind = datasets.Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg", "none"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=kind).to_parquet(tmp_path / "train.parquet")
    other = datasets.Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["c", "d"], "label": [1, 0]}, features=other).save_to_disk(tmp_path / "dev")
    data = from_files(tmp_path, train_file=tmp_path / "train.parquet", validation_file=tmp_path / "dev")
    assert data.labels == ("pos", "neg", "none")
    assert data.train is not None
    assert data.train["label"][:] == [1, 0]
    assert data.evaluation[""]["label"][:] == [0, 1]
    dev = write(tmp_path / "dev.csv", "text,label", "a,none", "b,neg")
    data = from_files(tmp_path, train_file=tmp_path / "train.parquet", validation_file=dev)
    assert data.evaluation[""]["label"][:] == [2, 1]


@pytest.mark.parametrize(
    ("train", "dev", "kind", "message"),
    [
        (
            ["0.5", "x1", *(f"{i / 8}" for i in range(40))],
            [],
            None,
            r"train\.csv, data row 2: expected a number .*'x1'\. ",
        ),
        (["0.5", "nan"], [], None, r"train\.csv, data row 2: expected a number in 'label', found 'nan'"),
        (["0.5", "-Infinity"], [], None, r"train\.csv, data row 2: expected a number .* found '-Infinity'"),
        (["0.5", "1e39"], [], None, r"train\.csv, data row 2: expected a number .* found '1e39'"),
        (["1", "1_0"], [], "scores", r"train\.csv, data row 2: expected a number in 'label', found '1_0'"),
        (["1", "\u0661"], [], "scores", r"train\.csv, data row 2: expected a number in 'label', found '\u0661'"),
        (["1", " "], [], None, r"train\.csv, data row 2: the cell in 'label' is empty"),
        (["0", "1"], ["1", "2"], None, r"dev\.csv, data row 2: the label '2' is none of train_file's: '0', '1'"),
        (["01", "02"], ["02", "1"], None, r"dev\.csv, data row 2: the label '1' is none of train_file's: '01', '02'"),
        (["0", "1"], ["1", "0.5"], "classes", r"dev\.csv, data row 2: the label '0\.5' is none of"),
        (["yes", "no"], ["Yes"], None, r"dev\.csv, data row 1: the label 'Yes' is none of train_file's: 'no', 'yes'"),
        (["a", "a"], [], "classes", r"train\.csv: expected at least two labels in 'label', found only 'a'"),
    ],
)
def test_labels_that_are_refused(
    tmp_path: Path, train: list[str], dev: list[str], kind: str | None, message: str
) -> None:
    files = {"train_file": write(tmp_path / "train.csv", "text,label", *(f"x,{label}" for label in train))}
    if dev:
        files["validation_file"] = write(tmp_path / "dev.csv", "text,label", *(f"x,{label}" for label in dev))
    with pytest.raises(ValueError, match=message):
        from_files(tmp_path, **files, label_kind=kind)


def test_unused_columns_may_hold_anything(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "label": 0, "x": 1}',
        '{"text": "b", "label": 1, "x": {"y": ["z"]}}',
        '{"text": "c", "label": 1}',
    ]
    data = from_files(tmp_path, train_file=write(tmp_path / "train.jsonl", *lines))
    assert data.train is not None
    assert data.train["text"][:] == ["a", "b", "c"]
    train = write(tmp_path / "train.csv", "text,label,x,x,", "a,0,1,,", "b,1,null,1e999,")
    assert from_files(tmp_path, train_file=train).text_columns == ("text",)


def test_quotes_in_a_tsv_file_by_a_flag(tmp_path: Path) -> None:
    train = write(tmp_path / "train.tsv", '"text"\t"label"', '"one\ttwo"\t"0"', '"three ""x"""\t1')
    data = from_files(tmp_path, train_file=train, tsv_quoting=True)
    assert data.train is not None
    assert data.train.to_dict() | {"idx": 0} == {
        "text": ["one\ttwo", 'three "x"'],
        "idx": 0,
        "label": [0, 1],
        "sample_id": [0, 1],
    }


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["7", "x"], r"train\.csv, data row 2: expected a sample id, an integer of at least 0, .* found 'x'"),
        (["7", "-1"], r"data row 2: expected a sample id, .* found '-1'\. Name another column with sample_id_column"),
        (["7", ""], r"data row 2: expected a sample id, .* found ''"),
        (["7.0", "8"], r"data row 1: expected a sample id, .* found '7\.0'"),
        (["7", str(2**63)], r"data row 2: expected a sample id, .* found '9223372036854775808'"),
        (["7", "07"], r"data row 2: the sample id 7 in 'sample_id' is that of data row 1: expected no repeated"),
    ],
)
def test_ids_of_the_users_own_that_are_none(tmp_path: Path, ids: list[str], message: str) -> None:
    lines = [f"a,{label},{sample_id}" for label, sample_id in enumerate(ids)]
    train = write(tmp_path / "train.csv", "text,label,sample_id", *lines)
    with pytest.raises(ValueError, match=message):
        from_files(tmp_path, train_file=train)
    other = from_files(tmp_path, train_file=train, text_columns=["text"], sample_id_column="row")
    assert other.train is not None
    assert other.train["row"][:] == [0, 1]


def test_large_ids(tmp_path: Path) -> None:
    lines = [f"a,0,{2**63 - 1}", f"b,1,{15 * 10**17}"]
    data = from_files(tmp_path, train_file=write(tmp_path / "train.csv", "text,label,sample_id", *lines))
    assert data.train is not None
    assert data.train["sample_id"][:] == [2**63 - 1, 15 * 10**17]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_columns": ["text", "label"]}, r"text_columns=\['text', 'label'\]: expected columns other"),
        ({"text_columns": ["sample_id"]}, r"'sample_id' holds the sample ids"),
        ({"text_columns": ["idx"]}, r"the name 'idx' is taken\. Rename the column"),
        ({"sample_id_column": "label"}, r"sample_id_column='label': the labels go by that name"),
        ({"label_column": "sample_id"}, r"sample_id_column='sample_id': the labels go by that name"),
    ],
)
def test_a_column_has_one_task(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    train = write(tmp_path / "train.csv", "text,label,sample_id,idx", "a,0,0,a", "b,1,1,b")
    with pytest.raises(ValueError, match=message):
        from_files(tmp_path, train_file=train, **arguments)
