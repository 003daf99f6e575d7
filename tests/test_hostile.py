"""A stranger or an accident has changed a run's files: the error is one line, comes soon, and takes little memory.

`store info`, `store verify`, resuming and the report read a run in which a file was replaced: by any JSON in a
manifest whose checksum fits, by any bytes, by a pipe, by a link to a device.
"""

import base64
import gzip
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainerState, TrainingArguments

from lstsd_hf import LogitsStore, StoreCorruptionError, StoreError, StoreMismatchError, cli, write_report
from lstsd_hf.report import page as page_module
from lstsd_hf.store.journal import ID, JournalWriter, journal_head
from lstsd_hf.training.checkpoint import last_complete_checkpoint, read_state, saved_store
from lstsd_hf.training.collator import TeachingEpochs
from lstsd_hf.training.exchange import Processes
from lstsd_hf.training.memory_log import MemoryLog
from lstsd_hf.training.recorder import Plan, Recorder
from lstsd_hf.training.training_set import TrainingSet

SAMPLES, STEP = 12, 8
SECONDS, MEGABYTES = 2, 200
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)


# ---- a run, and what reads it


def make_store(path: Path) -> LogitsStore:
    store = LogitsStore.create(path, SAMPLES, (3,), "float32", "12 rows, xxh3 00, inputs 11")
    store.write_labels(np.arange(SAMPLES) % 3)
    for epoch in range(2):
        store.record(epoch, np.arange(SAMPLES), np.arange(3.0 * SAMPLES).reshape(SAMPLES, 3) % 7)
        store.seal(epoch)
    store.write_statistic("margin", 1, np.zeros((SAMPLES, 2), np.float32))
    store.record(2, [3, 1], np.ones((2, 3)), step=6)
    store.close()
    return store


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, as a run leaves it."""
    folder = tmp_path_factory.mktemp("sound")
    store = make_store(folder / "_logits")
    checkpoint = folder / f"checkpoint-{STEP}"
    checkpoint.mkdir()
    note = {"steps_per_epoch": 3, "epoch": 2, "keeps_all": True, "log": {}, "problem_type": None}
    store.copy(checkpoint / "_logits", note)
    for place in (folder, checkpoint):
        log = [{"epoch": 1.0, "loss": 0.5, "step": 3}]
        TrainerState(global_step=STEP, log_history=log).save_to_json(str(place / "trainer_state.json"))
        names = {"id2label": {"0": "a", "1": "b", "2": "c"}}
        (place / "config.json").write_text(json.dumps(names))
    return folder


def command(*arguments: str) -> None:
    """Runs `lstsd`, and lets its errors through."""
    with redirect_stdout(StringIO()) as told:
        cli.main(["--traceback", *arguments])
    assert all(line.isprintable() for line in told.getvalue().split("\n"))


def info(run: Path) -> None:
    command("store", "info", str(run / "_logits"))


def verify(run: Path) -> None:
    command("store", "verify", str(run / "_logits"))


def resume(run: Path) -> None:
    """Resumes as a trainer does: reads the checkpoint's state and store, and gives them to a recorder."""
    saved = saved_store(str(run / f"checkpoint-{STEP}"), 3, False)
    assert saved is not None
    known = TrainingSet(SAMPLES, saved.fingerprint, np.arange(SAMPLES), np.arange(SAMPLES) % 3)
    plan = Plan(
        path=run / "_resumed",
        output_dir=run,
        training_set=known,
        dtype=saved.dtype,
        retention=None,
        history_budget=1 << 20,
        resumes_without_logits=False,
        accepts_new_labels=False,
        skips_seen_batches=True,
        teaching=TeachingEpochs(()),
    )
    state = TrainerState(global_step=STEP, max_steps=12, num_train_epochs=4)
    args = TrainingArguments(str(run), use_cpu=True, report_to=[])  # first, because it resets accelerate's state
    processes = Processes(Accelerator(cpu=True), args)
    memory = MemoryLog(processes, 3, log=lambda values: None)
    Recorder(plan, (), processes, state, 3, memory, saved).release()


def report(run: Path) -> None:
    write_report(run)


READERS: tuple[Callable[[Path], None], ...] = (info, verify, resume, report)


def megabytes(name: str) -> float:
    """The memory of this process by one of the kernel's measures, in MiB: VmRSS is now, VmHWM at its peak."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def hang(*_: Any) -> None:
    raise AssertionError("it does not come back")


def told(read: Callable[[Path], None], run: Path) -> str:
    """Asserts that a reader succeeds or raises our error of one line, soon and in little memory; returns the line."""
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)  # wall time, as the machine may be busy
    start, before = time.process_time(), megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present value
    line = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(run)
    except (StoreError, ValueError) as error:
        line = str(error)
        assert time.process_time() - start < SECONDS
        assert line
        assert line.isprintable(), line
        assert len(line) < 1500
    finally:
        signal.alarm(0)
    assert megabytes("VmHWM") - before < MEGABYTES
    return line


@contextmanager
def copy_of(run: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(run, Path(folder) / "run"))


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def forged(manifest: Any) -> bytes:
    """A manifest with a checksum that fits, which anybody can write."""
    if isinstance(manifest, dict):
        manifest = {key: value for key, value in manifest.items() if key != "checksum"}
        checksum = xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())
        manifest = manifest | {"checksum": checksum}
    return json.dumps(manifest).encode()


def change(store: Path, **changes: Any) -> None:
    """Changes values in a store's manifest; the value ... removes the key."""
    manifest = json.loads((store / "store.json").read_text()) | changes
    put(store / "store.json", forged({key: value for key, value in manifest.items() if value is not ...}))


def vouch(store: Path, name: str, content: bytes) -> None:
    """Puts a file into a store, and its checksum into the manifest."""
    put(store / name, content)
    manifest = json.loads((store / "store.json").read_text())
    checksum = xxhash.xxh3_128_hexdigest(content)
    if name.startswith("epoch"):
        manifest["sealed"][str(int(name[6:10]))] = checksum
    else:
        manifest[name.removesuffix(".npy")] = checksum
    put(store / "store.json", forged(manifest))


def npy(descr: str, shape: str, data: bytes) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


# ---- any content

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = (None, True, -1, 0, 20.0, 2**63, 2**64, 10**400, float("inf"))
TEXTS = ("", "\x1b[31m", "\ud800", "x" * 3000)
LISTS = ([], [0], [2**40], [3.0], [1] * 50)
NO_SUM = "0" * 32
TABLES = ({}, {"0": "x"}, {"-1": NO_SUM}, {"0" * 20: NO_SUM}, {"4294967296": NO_SUM}, {"epoch 0": NO_SUM})
hostile_values = st.sampled_from([*NUMBERS, *TEXTS, *LISTS, *TABLES])
MANIFEST_KEYS = ("format", "version", "num_samples", "row_shape", "dtype", "fingerprint", "ids", "labels", "sealed")
MANIFEST_KEYS += ("statistics", "open", "note", "label_changes", "aside", "layout", "parts", "checksum", "else")
MANIFEST_KEYS += ("label_offsets", "log", "texts")


@pytest.mark.parametrize("read", READERS)
def test_any_json_in_a_manifest_whose_checksum_fits(sound, read):
    @given(st.data())
    @FUZZ
    def fuzz(data):
        with copy_of(sound) as run:
            store = run / ("_logits" if read is not resume else f"checkpoint-{STEP}/_logits")
            if data.draw(st.integers(0, 4)) == 0:
                put(store / "store.json", forged(data.draw(json_values)))
            else:
                key = data.draw(st.sampled_from(MANIFEST_KEYS))
                change(store, **{key: data.draw(st.just(...) | hostile_values | json_values)})
            told(read, run)

    fuzz()


@pytest.mark.parametrize("read", READERS)
def test_any_bytes_in_any_file(sound, read):
    names = sorted(str(path.relative_to(sound)) for path in sound.rglob("*") if path.is_file())

    @given(st.data())
    @FUZZ
    def fuzz(data):
        with copy_of(sound) as run:
            path = run / data.draw(st.sampled_from(names))
            content = bytearray(path.read_bytes())
            kind = data.draw(st.sampled_from(["bytes", "cut", "flip", "longer"]))
            if kind == "flip":
                content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            elif kind == "longer":
                content += data.draw(st.binary(min_size=1, max_size=200))
            else:
                content = (
                    content[: data.draw(st.integers(0, len(content)))] if kind == "cut" else data.draw(st.binary())
                )
            put(path, bytes(content))
            told(read, run)

    fuzz()


@pytest.mark.parametrize("read", [resume, report])
def test_any_json_beside_a_store(sound, read):
    @given(st.data())
    @FUZZ
    def fuzz(data):
        with copy_of(sound) as run:
            place = run / f"checkpoint-{STEP}" if read is resume else run
            name = data.draw(st.sampled_from(["config.json", "trainer_state.json"]))
            key = data.draw(st.sampled_from(["id2label", "log_history", "global_step", "epoch", "max_steps"]))
            value = data.draw(hostile_values | json_values)
            whole = data.draw(
                st.sampled_from([value, {key: value}, {key: [value]}, {key: [{"epoch": value, "loss": value}]}])
            )
            put(place / name, json.dumps(whole).encode())
            line = told(read, run)
            assert not line or name in line

    fuzz()


def test_any_note_in_a_checkpoint(sound):
    @given(st.data())
    @FUZZ
    def fuzz(data):
        with copy_of(sound) as run:
            key = data.draw(st.sampled_from(["steps_per_epoch", "epoch", "log", "problem_type", "steps_before_pass"]))
            note = {"steps_per_epoch": 3, "epoch": 2} | {key: data.draw(hostile_values | json_values)}
            change(run / f"checkpoint-{STEP}" / "_logits", note=note)
            told(resume, run)

    fuzz()


# ---- what is no file, or a very large one


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def digits(path: Path) -> None:
    path.write_bytes(b"1" * 100_000)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


READS = {
    info: ("_logits/store.json",),
    verify: ("_logits/",),
    resume: (f"checkpoint-{STEP}/_logits/", f"checkpoint-{STEP}/trainer_state.json"),
    report: ("_logits/", "config.json", "trainer_state.json"),
}


@pytest.mark.parametrize("make", [pipe, device, folder, deep, digits, sparse], ids=lambda make: make.__name__)
def test_no_file_holds_a_reader_up(sound, make):
    for name in sorted(str(path.relative_to(sound)) for path in sound.rglob("*") if path.is_file()):
        with copy_of(sound) as run:
            (run / name).unlink()
            make(run / name)
            for read, prefixes in READS.items():
                if name.startswith(prefixes):
                    assert Path(name).name in told(read, run), (read, name)


# ---- case by case

WRONG = [
    ("num_samples", [..., None, "12", 12.0, True, 0, -1, 2**63 + 1, [12]], "an integer from 1"),
    (
        "row_shape",
        [..., None, 3, "3", [3.0], [0], [-1], [True], {"0": 3}, [2**29], [2**20, 2**20], [1] * 40],
        "sizes of",
    ),
    ("dtype", [..., None, 16, "float64", ["float32"], "<f4"], "one of 'float16'"),
    ("fingerprint", [..., None, 5, "\x1b[2J", "a\nb", "\u202e", "\ud800", "x" * 1001, ["x"]], "printable characters"),
    (
        "sealed",
        [..., None, [], {"-1": "0" * 32}, {"x": "0" * 32}, {"01": "0" * 32}, {"0": 5}, {"0": "../x"}],
        "checksums",
    ),
    ("sealed", [{"4294967296": "0" * 32}, {"9" * 11: "0" * 32}, {"\u0663": "0" * 32}], "checksums"),
    ("statistics", [None, [], {"margin": "0" * 32}, {"../x 0": "0" * 32}, {"epoch 0": "0" * 32}], "checksums"),
    (
        "open",
        [..., None, [], {"0": 1}, {"0 0": "1"}, {"0 0": -1}, {"0 0": 1.0}, {"a b": 1}, {"0 4294967296": 1}],
        "sizes",
    ),
    ("labels", [..., 0, "x", [], "0" * 31, "G" * 32], "null, or a checksum"),
    ("ids", [0, "x", "0" * 33], "null, or a checksum"),
    ("note", [..., None, [], "x", 5], "an object"),
    ("label_changes", [None, {}, [1], [{"epoch": 1}]], "a list"),
    ("surprise", [1], "unknown here"),
]


@pytest.mark.parametrize(("key", "values", "expected"), WRONG, ids=[f"{key}-{i}" for i, (key, *_) in enumerate(WRONG)])
def test_a_manifest_is_what_a_manifest_may_be(tmp_path, key, values, expected):
    make_store(tmp_path / "s")
    sound = (tmp_path / "s" / "store.json").read_bytes()
    for value in values:
        put(tmp_path / "s" / "store.json", sound)
        change(tmp_path / "s", **{key: value})
        with pytest.raises(StoreCorruptionError, match=rf"store\.json is damaged: '?{key}.*{expected}"):
            LogitsStore.open(tmp_path / "s")


def test_a_manifest_of_megabytes_is_not_read(tmp_path):
    make_store(tmp_path / "s")
    change(tmp_path / "s", note={"x": "y" * 5_000_000})
    with pytest.raises(StoreError, match=r"store\.json cannot be read: larger than"):
        LogitsStore.open(tmp_path / "s")


def test_what_makes_a_store_is_held_to_the_same(tmp_path):
    for name in ("\x1b[2J", "a\nb", "x" * 1001):
        with pytest.raises(ValueError, match="expected at most 1000 printable characters"):
            LogitsStore.create(tmp_path / "s", 4, (3,), "float16", name)
    with pytest.raises(ValueError, match="row_shape"):
        LogitsStore.create(tmp_path / "s", 4, (2**20, 2**20), "float16", "x")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "content",
    [
        npy("<f4", f"({2**60}, 3)", b"\0" * 144),
        npy("<f4", f"({2**70}, 0)", b""),
        npy("<f4", "(12, 4)", b"\0" * 192),
        npy("<f2", "(12, 3)", b"\0" * 72),
        npy("|O", "(12, 3)", b"\0" * 288),
        npy("<f4", "(" * 200, b"\0" * 144),
        npy("<f4", "(12, 3)", b"\0" * 145),
        npy("<f4", "(12, 3)", b"\0" * 143),
        b"\x93NUMPY\x01\x00",
        b"",
    ],
    ids=[
        "2^60 rows",
        "2^70 rows of nothing",
        "columns",
        "dtype",
        "objects",
        "nested",
        "longer",
        "shorter",
        "head",
        "empty",
    ],
)
def test_an_epoch_of_another_kind_is_not_mapped(tmp_path, content):
    make_store(tmp_path / "_logits")
    vouch(tmp_path / "_logits", "epoch-0001.npy", content)
    for read in (verify, report, lambda run: LogitsStore.open(run / "_logits").read(1, [0])):
        assert "epoch-0001.npy is" in told(read, tmp_path)


def test_journals_of_strangers(tmp_path):
    store = make_store(tmp_path / "s")
    journal = store.journal_path(2, 0)
    for name in ("epoch-4294967296.rank-00000.journal", "epoch-00002.rank-00000.journal", "epoch-0002.rank-0.journal"):
        stranger = journal.with_name(name)
        shutil.copy(journal, stranger)
        with pytest.raises(
            StoreCorruptionError, match=f"{name} is no journal of this store: wrong name. Move it aside"
        ):
            LogitsStore.open(store.path).verify()
        stranger.rename(tmp_path / name)  # as the message advises
        LogitsStore.open(store.path).verify()


@pytest.mark.parametrize("ids", [[SAMPLES], [-1], [2**62], [0, -(2**63)]], ids=str)
def test_ids_in_a_journal_that_are_none_of_the_stores(tmp_path, ids):
    store = make_store(tmp_path / "s")
    store.journal_path(2, 0).unlink()
    writer = JournalWriter(store.journal_path(2, 0), 0, journal_head(2, 0, store.row_bytes))
    writer.append(6, len(ids), 0, np.array(ids, ID).tobytes(), b"\0" * len(ids) * store.row_bytes)
    writer.close()
    wrong = [i for i in ids if not 0 <= i < SAMPLES]
    message = re.escape(f"rank-00000.journal holds sample ids {wrong}: expected 0 to 11")
    with pytest.raises(StoreCorruptionError, match=message):
        LogitsStore.open(store.path).verify()
    with pytest.raises(StoreCorruptionError, match=message):
        LogitsStore.open(store.path).seal(2)


def test_labels_that_no_manifest_names_are_nobodys(tmp_path):
    store = make_store(tmp_path / "_logits")
    change(store.path, labels=None)
    assert store.read_labels() is None
    assert "labels.npy is missing: expected the training labels" in told(report, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("<i8", "()", b"\0" * 8), "labels.npy is damaged: expected rows of numbers"),
        (npy("<U1", "(12,)", b"\0" * 48), "labels.npy is damaged: expected a .npy file of numbers"),
        (npy("<c8", "(12,)", b"\0" * 96), "labels.npy is damaged: expected a .npy file of numbers"),
        (npy("<i8", "(11,)", b"\0" * 88), "labels.npy is damaged: expected 12 rows, found 11"),
        (npy("<i8", "(12, 0)", b""), "labels of shape (12, 0)"),
        (npy("<f4", "(12,)", b"\0" * 48), "one class or one score for each sample"),
        (npy("<i8", "(12,)", b"\xff" * 96), "are no classes: expected 0 to 2"),
        (npy("<u8", "(12,)", b"\xff" * 96), "are no classes: expected 0 to 2"),
    ],
    ids=["0-d", "text", "complex", "fewer", "none", "scores", "negative", "huge"],
)
def test_labels_of_another_kind_are_told_in_one_line(tmp_path, content, message):
    make_store(tmp_path / "_logits")
    vouch(tmp_path / "_logits", "labels.npy", content)
    assert message in told(report, tmp_path)


@pytest.mark.parametrize("labels", [np.ones(4, bool), np.arange(4, dtype=np.uint8) % 2], ids=["flags", "bytes"])
def test_classes_may_be_numbers_of_any_kind(tmp_path, labels):
    store = LogitsStore.create(tmp_path / "_logits", 4, (2,), "float32", "x")
    store.record(0, np.arange(4), np.eye(4, 2))
    store.seal(0)
    store.write_labels(labels)
    assert np.load(write_report(tmp_path).parent / "labels.npy").tolist() == labels.astype(int).tolist()


@pytest.mark.parametrize(
    "labels", ["x", ["a", "b", "c", "d"], np.float32(1), np.ones(4, complex), [None] * 4], ids=repr
)
def test_labels_that_are_no_rows_of_numbers_are_not_stored(tmp_path, labels):
    store = LogitsStore.create(tmp_path / "s", 4, (2,), "float32", "x")
    with pytest.raises((ValueError, StoreMismatchError), match=r"expected rows of numbers|labels for a store of 4"):
        store.write_labels(labels)
    assert store.read_labels() is None


@pytest.mark.parametrize("row_shape", [(), (2, 3)], ids=str)
def test_a_report_of_other_rows_is_refused_in_one_line(tmp_path, row_shape):
    store = LogitsStore.create(tmp_path / "_logits", 4, row_shape, "float32", "x")
    store.record(0, np.arange(4), np.zeros((4, *row_shape)))
    store.seal(0)
    store.write_labels(np.zeros(4, np.int64))
    assert "The report does not know" in told(report, tmp_path)


def page_data(page: Path) -> str:
    (packed,) = re.findall(r'id="data">([^<]*)<', page.read_text(encoding="utf-8"))
    return gzip.decompress(base64.b64decode(packed)).decode()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("columns", [1, 3])
def test_logits_of_any_size_are_reported(tmp_path, columns):
    largest = float(np.finfo(np.float32).max)
    store = LogitsStore.create(tmp_path / "_logits", 6, (columns,), "float32", "x")
    for epoch in range(3):
        logits = np.linspace(-largest, largest, 6 * columns).reshape(6, columns) * (-1) ** epoch
        store.record(epoch, np.arange(6), logits)
        store.seal(epoch)
    store.write_labels(np.arange(6) % 3 if columns > 1 else np.linspace(0, 1, 6, dtype=np.float32))
    page = write_report(tmp_path)
    assert not {"NaN", "Infinity"} & set(re.findall("[A-Za-z]+", page_data(page)))
    if columns > 1:
        probabilities = np.load(page.parent / "pred_probs.npy")
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"id2label": [1, 2, 3]}', "config.json is damaged: expected the names of classes"),
        ("config.json", b'"x"', "config.json is damaged: expected a JSON object, found str"),
        ("config.json", b"\xff\xfe\x00", "config.json is damaged: expected JSON"),
        (
            "trainer_state.json",
            b'{"log_history": {}}',
            "trainer_state.json is damaged: expected a number as global_step",
        ),
        (
            "trainer_state.json",
            b'{"global_step": "7"}',
            "trainer_state.json is damaged: expected a number as global_step",
        ),
        ("trainer_state.json", b'{"log_history": [5]}', "trainer_state.json is damaged"),
    ],
)
def test_a_damaged_file_beside_a_store_is_named(sound, name, content, message):
    with copy_of(sound) as run:
        put(run / name, content)
        assert message in told(report, run)


def test_a_half_written_state_of_a_checkpoint_leaves_the_curve_to_another(sound):
    with copy_of(sound) as run:
        (run / "trainer_state.json").unlink()
        put(run / f"checkpoint-{STEP}" / "trainer_state.json", b'{"global_st')
        report(run)
        assert '"losses"' not in page_data(run / "_report" / "report.html")
        shutil.copytree(sound / f"checkpoint-{STEP}", run / "checkpoint-6")
        report(run)
        assert '"losses"' in page_data(run / "_report" / "report.html")


def test_names_and_numbers_that_no_page_can_show(sound):
    with copy_of(sound) as run:
        names = {"0": "\ud800", "1": "</script>", "2": {"x": [1]}}
        put(run / "config.json", json.dumps({"id2label": names}).encode())
        log = [{"epoch": value, "loss": value, "long_term_agreement": 0.5} for value in (1e308, 10**30, -1, "x", None)]
        log += [{"epoch": float("nan"), "loss": 1.0}, {"epoch": 1, "loss": 0.25}, {"epoch": float("inf")}]
        put(run / "trainer_state.json", json.dumps({"global_step": 9, "log_history": log}).encode())
        assert told(report, run) == ""
        assert json.loads(page_data(run / "_report" / "report.html"))["figures"]["losses"]["data"][0]["y"] == [0.25]


# ---- the last complete checkpoint


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


STATES: dict[str, Any] = {
    "bytes": b"\xff\x00\xfe",
    "list": b"[1, 2]",
    "number": b"7",
    "empty object": b"{}",
    "empty": b"",
    "cut": b'{"epoch": 2.0, "global_st',
    "unknown key": b'{"global_step": 8, "wonderful": 1}',
    "another step": b'{"global_step": 7}',
    "text as step": b'{"global_step": "8"}',
    "no log": b'{"global_step": 8, "log_history": {}}',
    "text as steps": b'{"global_step": 8, "save_steps": "x"}',
    "null as steps": b'{"global_step": 8, "logging_steps": null}',
    "a list as a batch": b'{"global_step": 8, "train_batch_size": [1]}',
    "text as work": b'{"global_step": 8, "total_flos": "x"}',
    "a number as a folder": b'{"global_step": 8, "best_model_checkpoint": 1e30}',
    "nested": b"[" * 100_000,
    "folder": folder_in_its_place,
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", STATES.values(), ids=STATES)
def test_a_state_that_is_half_readable_sends_a_run_one_checkpoint_back(tmp_path, damage):
    for step in (4, 8):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        TrainerState(global_step=step).save_to_json(str(checkpoint / "trainer_state.json"))
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-8")
    file = tmp_path / "checkpoint-8" / "trainer_state.json"
    if callable(damage):
        damage(file)
    else:
        file.write_bytes(damage)
    assert told(lambda run: read_state(run / "checkpoint-4"), tmp_path) == ""
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    shutil.rmtree(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="expected a folder checkpoint-N that was saved completely"):
        last_complete_checkpoint(str(tmp_path))


# ---- the report is whole, or the previous one stays


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("how", ["an error", "Ctrl-C", "kill"])
def test_a_report_that_is_cut_off_leaves_the_one_before(sound, monkeypatch, how):
    with copy_of(sound) as run:
        before = files_in(write_report(run).parent)
        store = LogitsStore.open(run / "_logits")
        store.write_labels((np.arange(SAMPLES) + 1) % 3)  # so that the next report differs

        def cut_off(path: Path, *_: Any) -> None:
            path.write_text("<html>")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if how == "Ctrl-C" else OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("lstsd_hf.report.page.write_page", cut_off)
            if how == "kill":
                child = os.fork()
                if not child:
                    write_report(run)
                    os._exit(0)
                assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
            else:
                with pytest.raises(KeyboardInterrupt if how == "Ctrl-C" else StoreError):
                    write_report(run)
        found = files_in_report = {path.name: path for path in (run / "_report").iterdir()}
        assert {name: found[name].read_bytes() for name in before} == before
        assert set(files_in_report) - set(before) == ({".unfinished"} if how == "kill" else set())
        write_report(run)
        after = files_in(run / "_report")
        assert after.keys() == before.keys()
        assert after["labels.npy"] != before["labels.npy"]


def test_of_two_reports_at_once_each_is_whole(sound, monkeypatch):
    """The second begins while the first has its page half written, and waits."""
    with copy_of(sound) as run:
        write_page, begun, seen = page_module.write_page, threading.Event(), list[bytes]()

        def slowly(path: Path, *rest: Any) -> None:
            if not begun.is_set():
                begun.set()
                path.write_bytes(b"half a page")
                second.join(1)
                seen.append(path.read_bytes())
            write_page(path, *rest)

        monkeypatch.setattr(page_module, "write_page", slowly)
        second = threading.Thread(target=lambda: begun.wait(60) and write_report(run))
        second.start()
        write_report(run)
        second.join(60)
        assert seen == [b"half a page"]
        assert not second.is_alive()
        assert (run / "_report/report.html").read_bytes().rstrip().endswith(b"</html>")
        assert ".unfinished" not in files_in(run / "_report")


def test_a_report_writes_through_no_link(sound, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    with copy_of(sound) as run:
        (run / "_report").mkdir()
        (run / "_report" / "report.html").symlink_to(mine)
        (run / "_report" / "notes.txt").write_text("kept")
        assert not write_report(run).is_symlink()
        assert (run / "_report" / "notes.txt").read_text() == "kept"
        shutil.rmtree(run / "_report")
        (run / "_report").symlink_to(tmp_path)
        assert "_report is a link: expected a folder" in told(report, run)
        (run / "_report").rename(run / "aside")  # as the message advises
        write_report(run)
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


def test_ids_that_a_browser_cannot_count_to_are_text(tmp_path):
    ids = [2**53 - 1, 2**53, 2**53 + 1, 1_500_000_000_000_000_001]
    store = LogitsStore.create(tmp_path / "_logits", ids[-1] + 1, (2,), "float32", "x", ids)
    store.record(0, ids, np.eye(4, 2))
    store.seal(0)
    store.write_labels(np.zeros(4, np.int64))
    shown = json.loads(page_data(write_report(tmp_path)))["rows"]["id"]
    assert sorted(shown) == sorted(map(str, ids))
    assert page_module.TABLE_ROWS > 4
