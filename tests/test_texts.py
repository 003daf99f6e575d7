"""The data set that the report takes texts from: it finds rows by id or by position, and labels must agree."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lstsd_hf import LogitsStore, LSTSDTrainer, add_sample_ids, cli, write_report
from lstsd_hf.glue.run import main
from lstsd_hf.report.run import read_run
from lstsd_hf.report.texts import Texts, read_texts
from toys import BAD, GOOD, config, rows, tiny_bert

WORDS = ("no", "yes", "maybe")


def run_of(folder: Path, labels: Any, names: tuple[str, ...] = (), columns: int = 3) -> Path:
    """Makes the folder of a run with these labels by id, and with class names as in a model's configuration."""
    store = LogitsStore.create(folder / "_logits", len(labels), (columns,), "float32", "test")
    store.write_labels(np.asarray(labels))
    store.record(0, np.arange(len(labels)), np.zeros((len(labels), columns)))
    store.seal(0)
    if names:
        (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}), encoding="utf-8")
    return folder


def texts_of(folder: Path, dataset: Any, *arguments: Any, **named: Any) -> list[str | None]:
    run = read_run(folder, folder / "_logits")
    found: Texts = read_texts(dataset, run, *arguments, **named)
    return found.of(run.ids, 300)[0]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_file_that_was_trained_on_needs_no_ids(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, 1, 2, 1], WORDS)
    path = write(tmp_path / "train.csv", "text,label,n", "a,no,1", "b,yes,2", "c, maybe ,3", "d,yes,4")
    assert texts_of(folder, path) == ["a", "b", "c", "d"]
    assert texts_of(folder, str(path), "label") == ["no", "yes", " maybe ", "yes"]
    table = Dataset.from_csv(str(path), cache_dir=str(tmp_path / "cache"))
    assert texts_of(folder, table) == ["a", "b", "c", "d"]
    assert texts_of(folder, DatasetDict({"test": table.select([0]), "train": table})) == ["a", "b", "c", "d"]


def test_rows_that_were_held_out_have_no_label_in_the_store(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, -100, 2, 1], WORDS)
    lines = ("a,no", "held out,yes", "c,maybe", "d,yes", "held out too,no")
    assert texts_of(folder, write(tmp_path / "train.csv", "text,label", *lines)) == ["a", "c", "d"]
    with pytest.raises(
        ValueError, match=r"has no column 'sample_id', and 3 rows: expected sample ids, or .* 4 of them"
    ):
        texts_of(folder, write(tmp_path / "train.csv", "text,label", *lines[:3]))


def test_the_wrong_order_is_refused(tmp_path: Path) -> None:
    """The run saw shuffled rows without ids, so positions are ids; the report gets the rows as they were loaded."""
    first = Dataset.from_dict({"text": [f"t{i}" for i in range(90)], "label": [i % 3 for i in range(90)]})
    shuffled = first.shuffle(seed=1)
    folder = run_of(tmp_path, shuffled["label"])
    assert texts_of(folder, shuffled) == shuffled["text"][:]
    differ = int((np.array(first["label"]) != np.array(shuffled["label"])).sum())
    assert 50 < differ < 70
    message = rf"{differ} of 90 labels in 'label' are not those .*no column 'sample_id', so its rows were counted\. .*"
    with pytest.raises(ValueError, match=message + r"with the ids that it had then .*label_column"):
        texts_of(folder, first)
    with pytest.raises(ValueError, match=rf"The data set of the texts: {differ} of 90 labels .* are not those"):
        texts_of(folder, add_sample_ids(first))


def test_a_label_that_was_corrected_since_is_named(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, 1, 2, 1], WORDS)
    path = write(tmp_path / "train.csv", "text,label,sample_id", "d,yes,3", "b,maybe,1", "c,maybe,2", "a,,0")
    message = r"2 of 4 labels in 'label' .* the first is in data row 4, for sample id 0: expected 'no', found ''"
    with pytest.raises(ValueError, match=message) as found:
        texts_of(folder, path)
    assert str(path) in str(found.value)
    assert "counted" not in str(found.value)


def test_ids_are_looked_up(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, 1, 2, 1], WORDS)
    path = write(
        tmp_path / "train.csv", "text,label,sample_id,row", "d,yes,3,1", "x,unknown to the run,9,4", "a,no,0,3"
    )
    assert texts_of(folder, path) == ["a", None, None, "d"]
    with pytest.raises(ValueError, match=r"expected a sample id, .* in 'text', found 'd'"):
        texts_of(folder, path, "row", sample_id_column="text")
    with pytest.raises(ValueError, match=r"1 of 2 labels in 'label' are not those .* expected 'yes', found 'no'"):
        texts_of(folder, path, sample_id_column="row")
    # Without labels, ids are trusted.
    assert texts_of(folder, write(path, "text,row", "d,3", "a,0"), sample_id_column="row") == ["a", None, None, "d"]


def test_neither_ids_nor_labels(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, 1, 2, 1])
    path = write(tmp_path / "train.csv", "text,stars", "a,0", "b,1", "c,2", "d,1")
    with pytest.raises(
        ValueError, match=r"no column 'sample_id': expected 'sample_id', found .* known by their labels"
    ):
        texts_of(folder, path)
    assert texts_of(folder, path, label_column="stars") == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"no column 'star': expected 'star', found 'text', 'stars'"):
        texts_of(folder, path, label_column="star")
    with pytest.raises(ValueError, match=r"1 of 4 labels in 'text' are not those"):
        texts_of(folder, path, "stars", label_column="text")


@pytest.mark.parametrize(
    ("names", "labels", "agrees"),
    [
        (WORDS, ["no", "yes", "maybe", "yes"], True),
        (WORDS, [0, 1, 2, 1], True),  # by number
        (WORDS, ["0", "1", "2", "1"], True),
        (WORDS, ["yes", "no", "maybe", "no"], False),  # known names, but of other classes
        (WORDS, [1, 0, 2, 0], False),
        (WORDS, ["no", "yes", "maybe", "maybe"], False),
        (WORDS, ["no", "yes", "maybe", None], False),
        (WORDS, ["no", "yes", "maybe", "Yes"], False),
        (("2", "10", "x"), [2, 10, "x", 10], True),
        ((), ["b", "a", "c", "a"], True),  # names that the user numbered
        ((), ["b", "a", "c", "c"], False),
        ((), ["b", "a", "a", "a"], False),
        ((), ["a", "b", "c", "d"], False),
        ((), [1, 2, 3, 2], True),  # counted from 1
        ((), [1, 2, 3, 1], False),
        ((), [0.0, 1.0, 2.0, 1.0], True),
        ((), [0.0, 1.0, 2.0, 2.0], False),
    ],
)
def test_labels_agree_by_name_or_by_number(
    tmp_path: Path, names: tuple[str, ...], labels: list[Any], agrees: bool
) -> None:
    folder = run_of(tmp_path, [0, 1, 2, 1], names)
    path = tmp_path / "train.jsonl"
    write(path, *(json.dumps({"text": text, "label": label}) for text, label in zip("abcd", labels, strict=True)))
    if agrees:
        assert texts_of(folder, path) == ["a", "b", "c", "d"]
    else:
        with pytest.raises(
            ValueError, match=r"[1-4] of 4 labels in 'label' are not those that the run was trained on"
        ):
            texts_of(folder, path)


@pytest.mark.parametrize("names", [("no", "yes", "maybe"), ("maybe", "no", "yes")])
def test_class_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Compared by name where the configuration has the names, in whatever order; else by number."""
    kind = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    ids = [names.index(WORDS[label]) for label in (0, 1, 2, 1)]
    data = Dataset.from_dict({"text": list("abcd"), "label": ids}, features=kind)
    assert texts_of(run_of(tmp_path / "named", [0, 1, 2, 1], WORDS), data) == ["a", "b", "c", "d"]
    assert texts_of(run_of(tmp_path / "numbered", ids, ("LABEL_0", "LABEL_1", "LABEL_2")), data) == [
        "a",
        "b",
        "c",
        "d",
    ]
    other = run_of(tmp_path / "other", [0, 0, 2, 1], WORDS)
    with pytest.raises(ValueError, match=r"1 of 4 labels .*expected 'no', found 'yes'"):
        texts_of(other, data)


@pytest.mark.parametrize("labels", [["0.1", "2", "-1e-3"], [0.1, 2.0, -0.001]])
def test_scores(tmp_path: Path, labels: list[Any]) -> None:
    folder = run_of(tmp_path, np.array([0.1, 2, -0.001], np.float32), columns=1)
    data = Dataset.from_dict({"text": list("abc"), "label": labels})
    data.to_csv(tmp_path / "a.csv")
    data.to_json(tmp_path / "a.jsonl")
    data.to_parquet(tmp_path / "a.parquet")
    single = data.cast_column("label", Value("float32"))
    for given in (data, single, *(tmp_path / f"a.{suffix}" for suffix in ("csv", "jsonl", "parquet"))):
        assert texts_of(folder, given) == ["a", "b", "c"]
    wrong = Dataset.from_dict({"text": list("abc"), "label": [0.1, 2.01, -0.001]})
    with pytest.raises(ValueError, match=r"1 of 3 labels .* for sample id 1: expected 2, found '2\.01'"):
        texts_of(folder, wrong)
    words = Dataset.from_dict({"text": list("abc"), "label": ["0.1", "two", "nan"]})
    with pytest.raises(ValueError, match=r"2 of 3 labels .*expected 2, found 'two'"):
        texts_of(folder, words)


def test_columns_of_other_kinds(tmp_path: Path) -> None:
    """Labels that are lists are not compared; a column that is named is shown, whatever it holds."""
    folder = run_of(tmp_path, [0, 1, 2])
    data = Dataset.from_dict(
        {
            "sample_id": [2, 1, 0],
            "labels": [[1], [2], [3]],
            "n": [7, 8, 9],
            "tokens": [["a", "b"], ["c"], []],
            "t": list("xyz"),
        }
    )
    data.to_json(tmp_path / "a.jsonl")
    for given in (data, tmp_path / "a.jsonl"):
        assert texts_of(folder, given) == ["z", "y", "x"]
        assert texts_of(folder, given, ["n", "t"]) == ["9\nz", "8\ny", "7\nx"]
        assert [text and text.replace("'", '"') for text in texts_of(folder, given, "tokens")] == [
            "[]",
            '["c"]',
            '["a", "b"]',
        ]


def test_numbers_are_no_text_until_they_are_named(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, 1, 2])
    path = write(tmp_path / "a.csv", ",text,label,n,empty", "0,a,0,1.5,", "1,b,1,2,", "2,c,2,,")
    assert texts_of(folder, path) == ["a", "b", "c"]
    assert texts_of(folder, path, ["n", "text"]) == ["1.5\na", "2\nb", "\nc"]
    with pytest.raises(
        ValueError,
        match=r"no column of text, but 'label', 'n' \(taken for ids and labels: 'label'\)\. Name the columns to show",
    ):
        texts_of(folder, write(path, "label,n", "0,1", "1,2", "2,3"))


def test_names_of_classes_that_differ_by_spaces_or_are_empty(tmp_path: Path) -> None:
    names = ("a", " a", "")
    kind = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    data = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 2, 1]}, features=kind)
    for known in (names, ("LABEL_0", "LABEL_1", "LABEL_2")):
        assert texts_of(run_of(tmp_path / known[0], [0, 1, 2, 1], known), data) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"1 of 4 labels .*expected ' a', found 'a'"):
        texts_of(run_of(tmp_path / "other", [1, 1, 2, 1], names), data)


def test_columns_with_the_same_name_are_not_shown(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [0, 1, 2])
    path = write(tmp_path / "a.csv", "note,text,label,note", "x,a,0,y", "x,b,1,y", "x,c,2,y")
    assert texts_of(folder, path) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="expected one column 'note', found 2"):
        texts_of(folder, path, "note")


def test_the_label_column_that_was_learnt_is_known(model: str, tmp_path: Path) -> None:
    """Another column with a usual name of labels, or a text in it, does not stand in for it."""
    lines = [f"{i % 2},the film was {(BAD, GOOD)[i % 2][i // 2 % 4]} {i},{'xyz'[i % 3]}" for i in range(48)]
    trained = write(tmp_path / "train.csv", "mood,text,label", *lines)
    out, cleaned = tmp_path / "out", tmp_path / "c.csv"
    settings = "--do_train --num_train_epochs 3 --use_cpu --disable_tqdm true --report true --text_columns text"
    settings += f" --label_column mood --output_dir {out}"
    main(["--model_name_or_path", model, "--train_file", str(trained), *settings.split()])
    decisions = write(tmp_path / "d.csv", "sample_id,decision,label", "3,relabel,0")
    for run in (out, out / "checkpoint-18"):  # a checkpoint's store has the same note
        assert LogitsStore.open(run / "_logits").label_column == "mood"
    cli.main(["report", str(out), "--dataset", str(trained)])
    cli.main(["clean", str(out), "--dataset", str(trained), "--decisions", str(decisions), "-o", str(cleaned)])
    assert cleaned.read_text() == trained.read_text().replace(lines[3], "0" + lines[3][1:])


def test_tsv_with_quotes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run_of(tmp_path, [0, 1, 2])
    path = write(tmp_path / "a.tsv", "text\tlabel", '"a"\t0', "b\t1", "c\t2")
    assert texts_of(folder, path) == ['"a"', "b", "c"]
    assert len(caplog.records) == 1
    assert texts_of(folder, path, tsv_quoting=True) == ["a", "b", "c"]
    assert len(caplog.records) == 1


def test_positions_of_a_real_run(tmp_path: Path) -> None:
    """The trainer numbers rows by position where there are no ids, and the report takes the same rows."""
    data = rows(24).shuffle(seed=2)
    LSTSDTrainer(model=tiny_bert(), args=config(tmp_path, num_train_epochs=1), train_dataset=data).train()
    with_texts = data.add_column("text", [f"row {i}" for i in range(24)])
    assert texts_of(tmp_path, with_texts) == [f"row {i}" for i in range(24)]
    with pytest.raises(ValueError, match=r"\d+ of 24 labels in 'label' are not those"):
        write_report(tmp_path, with_texts.shuffle(seed=3))
    assert not (tmp_path / "_report").exists()


@pytest.mark.parametrize("label_column", ["label", "liked"])
def test_from_a_csv_to_its_report_by_command(
    tmp_path: Path, model: str, label_column: str, capsys: pytest.CaptureFixture
) -> None:
    lines = [f'"{i}, the film was {(BAD, GOOD)[i % 2][i // 2 % 4]}",{("no", "yes")[i % 2]}' for i in range(20)]
    train = write(tmp_path / "train[1].csv", f"text,{label_column}", *lines)
    argv = ["--model_name_or_path", model, "--train_file", str(train), "--label_column", label_column]
    argv += ["--validation_fraction", "0.2", "--do_train", "--num_train_epochs", "1", "--use_cpu", "true"]
    argv += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--save_strategy", "no"]
    main([*argv, "--disable_tqdm", "true"])
    command = ["report", str(tmp_path / "out"), "--dataset", str(train)]
    cli.main([*command, *(["--label_column", "liked"] if label_column == "liked" else [])])
    assert "The report is" in capsys.readouterr().out
    found = texts_of(tmp_path / "out", train, label_column=label_column)
    assert len(found) == 16
    assert set(found) < {line.split('"')[1] for line in lines}
    write(train, f"text,{label_column}", *reversed(lines))
    with pytest.raises(SystemExit) as leaving:
        cli.main([*command, "--label_column", label_column])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert f"lstsd report: error: {train}: 16 of 16 labels in {label_column!r} are not those" in error
    assert error.count("\n") == 1


def test_a_report_loads_no_torch(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", [0, 1, 2], WORDS)
    data = Dataset.from_dict({"text": list("abc"), "label": list(WORDS)})
    data.save_to_disk(tmp_path / "a")
    data.to_parquet(tmp_path / "a.parquet")
    data.to_json(tmp_path / "a.json")
    data.to_csv(tmp_path / "a.csv")
    script = f"""
import sys
from lstsd_hf import cli
for name in ("a", "a.parquet", "a.json", "a.csv"):
    cli.main(["report", {str(folder)!r}, "--dataset", {str(tmp_path)!r} + "/" + name])
print(sorted({{"torch", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[4:] == ["[]"]


def test_rows_that_moved_under_equal_labels_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """After `lstsd train`, which notes what the texts were; `--max_train_samples` leaves the last rows out."""
    texts = [f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]} {i}" for i in range(48)]
    trained = write(tmp_path / "train.csv", "text,label", *(f"{text},{i % 2}" for i, text in enumerate(texts)))
    out = tmp_path / "out"
    settings = "--do_train --num_train_epochs 3 --use_cpu --disable_tqdm true --save_strategy epoch"
    settings += f" --max_train_samples 40 --output_dir {out}"
    main(["--model_name_or_path", model, "--train_file", str(trained), *settings.split()])

    def told(command: str, run: Path, dataset: Path, *more: str) -> str:
        with pytest.raises(SystemExit) as leaving:
            cli.main([command, str(run), "--dataset", str(dataset), *more])
        assert leaving.value.code == 2
        return capsys.readouterr().err

    moved = [texts[(i + 2) % 40] for i in range(40)] + texts[40:]
    rotated = write(tmp_path / "rotated.csv", "text,label", *(f"{text},{i % 2}" for i, text in enumerate(moved)))
    copied = tmp_path / "copy.csv"
    drop = ("--drop", "--min_score", "0.5", "-o", str(copied))
    for run in (out, out / "checkpoint-5"):  # a checkpoint's store has the same note
        for line in (told("report", run, rotated), told("clean", run, rotated, *drop)):
            assert "the texts in 'text' are not those that the run was trained on, row by row" in line
    assert not copied.exists()
    numbered = [f"{text},{i % 2},{texts.index(text)}" for i, text in enumerate(moved)]
    named = write(tmp_path / "numbered.csv", "text,label,was", *numbered)  # as the message advises
    cli.main(["clean", str(out), "--dataset", str(named), "--sample_id_column", "was", *drop])

    longer = [*texts[:40], *("new" for _ in range(9))]  # what was not trained on may change
    same = write(tmp_path / "same.csv", "text,label", *(f"{text},{i % 2}" for i, text in enumerate(longer)))
    cli.main(["report", str(out), "--dataset", str(same)])
    cli.main(
        [
            "report",
            str(out),
            "--dataset",
            str(write(tmp_path / "other.csv", "x,label", *(f"a,{i % 2}" for i in range(40)))),
        ]
    )


@pytest.mark.parametrize("name", ["labels", "label_ids"])
def test_texts_under_a_name_of_labels(model: str, tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    lines = [f"the film was {(BAD, GOOD)[i % 2][i // 2 % 4]} {i},{i % 2}" for i in range(48)]
    trained, out = write(tmp_path / "train.csv", f"{name},label", *lines), tmp_path / "out"
    settings = f"--do_train --num_train_epochs 3 --use_cpu --disable_tqdm true --report true --output_dir {out}"
    main(["--model_name_or_path", model, "--train_file", str(trained), *settings.split()])
    cli.main(["report", str(out), "--dataset", str(trained)])  # as the last line of a run advises
    assert texts_of(out, trained) == [line.split(",")[0] for line in lines]
    capsys.readouterr()
    cli.main(
        ["clean", str(out), "--dataset", str(trained), "--drop", "--min_score", "1", "-o", str(tmp_path / "c.csv")]
    )

    # A column of texts that is named as the label's is in the message, which says what to name.
    with pytest.raises(SystemExit):
        cli.main(["report", str(out), "--dataset", str(trained), "--label_column", name])
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"(taken for ids and labels: '{name}', 'label')" in line


def test_a_run_whose_name_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_of(tmp_path / "r\udce9", [0, 1, 2, 1], WORDS)
    with pytest.raises(SystemExit):
        cli.main(["report", str(run)])
    assert f"{tmp_path}/r\\udce9: expected a folder whose name is in UTF-8" in capsys.readouterr().err
    cli.main(["report", str(run.rename(tmp_path / "r"))])  # as the message advises
