"""File systems that lack a feature, refuse a call or are full, real ones if possible; and what a run leaves behind."""

import errno
import os
import signal
import stat
import subprocess
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from lstsd_hf import LogitsStore, LSTSDTrainer, StoreError, add_sample_ids, write_report
from lstsd_hf.store import files
from lstsd_hf.training import place
from toys import config, rows, tiny_bert, weights

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and acts as another user: needs root")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system, and returns its folder."""
    mounted: list[Path] = []

    def do(*options: str, source: str = "tmpfs") -> Path:
        folder = tmp_path / f"mount-{len(mounted)}"
        folder.mkdir()
        if subprocess.run(["mount", *options, source, str(folder)], capture_output=True, check=False).returncode:
            pytest.skip("this machine lets nobody mount a file system")
        mounted.append(folder)
        return folder

    yield do
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def store_in(folder: Path, samples: int = 12, epochs: int = 1) -> LogitsStore:
    """A store with labels, sealed epochs and an open one."""
    store = LogitsStore.create(folder, samples, (3,), "float32", "toy")
    store.write_labels(np.arange(samples) % 3)
    for epoch in range(epochs + 1):
        store.record(epoch, np.arange(samples), np.full((samples, 3), epoch, np.float32))
        if epoch < epochs:
            store.seal(epoch)
    store.close()
    return store


def train(folder: Path, *callbacks: TrainerCallback, resume: Any = None, **changes: Any) -> LSTSDTrainer:
    data = add_sample_ids(rows(16))
    trainer = LSTSDTrainer(
        tiny_bert(), config(folder, **{"num_train_epochs": 3} | changes), train_dataset=data, callbacks=[*callbacks]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def refuse(number: int) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


def as_nobody(act: Callable[[], Any]) -> str:
    """Runs a function as another user, in a child process; returns the text of its error, or "nothing"."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            warnings.simplefilter("ignore")
            act()
            told = "nothing"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


# ---- what a run can do without


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_locks_a_run_goes_on_with_one_warning(tmp_path, monkeypatch, number):
    monkeypatch.setattr("fcntl.flock", refuse(number))
    with pytest.warns(UserWarning, match="has no locks: make sure that no second run uses") as warned:
        train(tmp_path)
    assert len([w for w in warned if "has no locks" in str(w.message)]) == 1
    assert LogitsStore.open(tmp_path / "_logits").sealed_epochs == [0, 1, 2]
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM, errno.ESTALE], ids=errno.errorcode.get)
def test_a_lock_that_fails_leaves_no_file_but_another_runs(tmp_path, monkeypatch, number):
    monkeypatch.setattr("fcntl.flock", refuse(number))
    with pytest.raises(StoreError, match=r"_logits\.lock could not be locked"):
        train(tmp_path)
    assert not list(tmp_path.glob("*.lock"))
    (tmp_path / "_logits.lock").touch()
    with pytest.raises(StoreError, match=r"_logits\.lock could not be locked"):
        train(tmp_path)
    assert (tmp_path / "_logits.lock").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refuse(number)()
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", files_only)
    with pytest.warns(UserWarning, match=r"refuses to flush the folder .* A power cut may undo") as warned:
        store_in(tmp_path / "s", epochs=3).verify()
    assert len(warned) == 1


def test_files_that_cannot_be_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refuse(errno.ENOSYS))
    with pytest.warns(UserWarning, match="refuses to flush a file"):
        store_in(tmp_path / "s").verify()


def test_a_flush_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refuse(errno.EIO))
    with pytest.raises(StoreError, match=r"store\.json could not be written: Input/output error\. Earlier files"):
        store_in(tmp_path / "s")
    assert list((tmp_path / "s").glob("*")) == [tmp_path / "s" / "open"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_where_no_file_can_be_made_read_only(tmp_path, monkeypatch, number):
    monkeypatch.setattr("os.chmod", refuse(number))
    with pytest.warns(UserWarning, match=r"refuses to make .* read-only") as warned:
        store_in(tmp_path / "s", epochs=3).copy(tmp_path / "copy", {}).verify()
    assert len(warned) == 1


NO_LINKS = (errno.EROFS, errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_without_hard_links_there_are_copies(tmp_path, monkeypatch, number):
    store = store_in(tmp_path / "s", epochs=2)
    monkeypatch.setattr("os.link", refuse(number))
    with pytest.warns(UserWarning, match="is a copy, because hard links are refused") as warned:
        copy = store.copy(tmp_path / "copy", {})
    assert len(warned) == 1
    copy.verify()
    for file in (tmp_path / "s").glob("*.npy"):
        assert not file.samefile(copy.path / file.name)
        assert file.read_bytes() == (copy.path / file.name).read_bytes()


@needs_root
def test_files_of_another_user_are_copied(common):
    """The kernel refuses hard links to files that one may not write to."""
    store = store_in(common / "s")
    (common / "theirs").mkdir()
    os.chown(common / "theirs", NOBODY, NOBODY)
    assert as_nobody(lambda: store.copy(common / "theirs" / "copy", {})) == "nothing"
    copy = LogitsStore.open(common / "theirs" / "copy")
    copy.verify()
    assert not copy.labels_path.samefile(store.labels_path)


@needs_root
def test_a_checkpoint_on_a_read_only_disk_is_resumed_on_another(tmp_path, mount):
    whole = train(tmp_path / "whole", save_strategy="steps", save_steps=3)
    disk = mount("-o", "bind", source=str(tmp_path / "whole"))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    LogitsStore.open(disk / "_logits").verify()
    with pytest.warns(UserWarning, match="hard links are refused"):
        resumed = train(tmp_path / "there", resume=str(disk / "checkpoint-3"))
    assert torch.equal(weights(resumed.model), weights(whole.model))


# ---- what a run cannot do without


@needs_root
def test_a_read_only_disk_is_named_as_the_cause(tmp_path, mount):
    train(tmp_path / "run")
    disk = mount("-o", "bind", source=str(tmp_path / "run"))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    for act in (
        lambda: write_report(disk),
        lambda: LogitsStore.open(disk / "_logits").record(7, [0], [[0, 0, 0]]),
        lambda: train(tmp_path / "other", logits_dir=str(disk / "_new")),
    ):
        with pytest.raises(StoreError, match=r"could not be written: Read-only file system.*\. Earlier files") as told:
            act()
        assert "Free some space" not in str(told.value)


@needs_root
def test_a_full_disk_gets_back_what_a_failed_write_took(tmp_path, mount):
    disk = mount("-t", "tmpfs", "-o", "size=1500k")
    store = store_in(disk / "s", samples=20_000)  # 240 KB for an epoch, 400 KB for the journal of the open one
    store.copy(disk / "kept", {})
    (disk / "filler").write_bytes(b"x" * 200_000)
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    message = r"could not be written: No space left on device\. Free some space; earlier files are intact"
    for act in (
        lambda: store.seal(1),
        lambda: store.copy(disk / "kept", {"step": 2}),
        lambda: store.copy(disk / "new", {}),
        lambda: store.write_labels(np.zeros((20_000, 4), np.int64)),
        lambda: store.write_statistic("margin", 0, np.zeros((20_000, 8))),
    ):
        with pytest.raises(StoreError, match=message):
            act()
        assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before
    (disk / "filler").unlink()
    files.remove(disk / "kept")
    store.seal(1)  # as the message advises
    assert store.read(1, [5]).tolist() == [[1, 1, 1]]
    store.verify()


def test_a_disk_too_small_names_what_is_not_in_force_already(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=100))
    for changes, remedies in (
        (
            {},
            "Free some space, or name a logits_dir on another disk, or set logits_retention='needed', or set logits_d",
        ),
        ({"logits_dtype": "float16"}, r"another disk, or set logits_retention='needed'\.$"),
        ({"logits_dtype": "float16", "logits_retention": "needed"}, r"or name a logits_dir on another disk\.$"),
    ):
        with pytest.raises(StoreError, match=remedies):
            train(tmp_path, **changes)


# ---- locks


def test_a_folder_in_the_place_of_the_lock(tmp_path):
    (tmp_path / "_logits.lock").mkdir()
    with pytest.raises(StoreError, match=r"_logits\.lock could not be written: Is a directory"):
        train(tmp_path)


def test_a_lock_that_cannot_be_made_anywhere(tmp_path):
    with pytest.raises(StoreError, match=r"^/proc/lstsd\.lock could not be written: No such file"):
        place.lock(Path("/proc/lstsd"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"could not be written: File exists \(.*/file\)"):
        place.lock(tmp_path / "_logits", tmp_path / "file")
    assert not list(tmp_path.glob("*.lock"))


@needs_root
def test_a_folder_without_permission_and_a_colleagues_lock_file(common):
    def lock_and_unlock() -> None:
        place.unlock(place.lock(common / "_logits", common))

    denied = "could not be written: Permission denied"
    assert denied in as_nobody(lock_and_unlock)
    common.chmod(0o777)
    (common / "_logits.lock").touch(0o644)  # it belongs to root
    assert denied in as_nobody(lock_and_unlock)
    (common / "_logits.lock").unlink()
    assert as_nobody(lock_and_unlock) == "nothing"


class SecondRun(TrainerCallback):
    """Starts another run in the middle of this one, and keeps the message of its error."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self.start, self.told = start, ""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            with pytest.raises(StoreError) as error:
                self.start()
            self.told = str(error.value)


@pytest.mark.parametrize("shared", ["output_dir", "logits_dir", "both"])
def test_two_runs_share_neither_output_dir_nor_logits_dir(tmp_path, shared):
    first, second = ({"logits_dir": str(tmp_path / f"_{name}")} for name in ("one", "two"))
    if shared != "output_dir":
        second = first
    other = tmp_path / ("run" if shared != "logits_dir" else "elsewhere")
    rival = SecondRun(lambda: train(other, **second))
    train(tmp_path / "run", rival, **first)
    what = "output_dir" if shared == "output_dir" else "logits store"
    assert rival.told.startswith(f"Another run uses the {what}")
    assert "name another output_dir, and another logits_dir if you have named one" in rival.told
    assert LogitsStore.open(tmp_path / "_one").sealed_epochs == [0, 1, 2]
    assert not list(tmp_path.rglob("*.lock"))


def test_a_second_run_with_folders_of_its_own_goes_on(tmp_path):
    """As the message advises, in the middle of the first run."""

    class Beside(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                train(tmp_path / "two", logits_dir=str(tmp_path / "_two"))

    train(tmp_path / "one", Beside(), logits_dir=str(tmp_path / "_one"))
    for name in ("_one", "_two"):
        assert LogitsStore.open(tmp_path / name).sealed_epochs == [0, 1, 2]


# ---- a link to a bigger disk


def test_a_link_to_a_bigger_disk_stays_one(tmp_path, caplog):
    big, run = tmp_path / "big", tmp_path / "run"
    run.mkdir()
    (run / "_logits").symlink_to(big / "logits")  # nothing is there yet
    saving = {"save_strategy": "steps", "save_steps": 3}
    first = train(run, **saving)
    assert LogitsStore.open(big / "logits").sealed_epochs == [0, 1, 2]
    second = train(run, **saving)
    assert f"they were moved to {big / 'logits-1'}" in caplog.text
    resumed = train(run, resume=str(run / "checkpoint-3"), **saving)
    for trainer in (second, resumed):
        assert torch.equal(weights(trainer.model), weights(first.model))
    assert (run / "_logits").is_symlink()
    # The resumed run moved the second one's store aside, without epoch 0, which it has itself.
    for folder, epochs in ((run / "_logits", [0, 1, 2]), (big / "logits-2", [1, 2])):
        LogitsStore.open(folder).verify()
        assert LogitsStore.open(folder).sealed_epochs == epochs
    assert write_report(run).exists()


# ---- what a run leaves


class Killed(Exception):  # noqa: N818
    pass


class Kill(TrainerCallback):
    """Ends a run at a step, as an error in the user's code would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def litter(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".lock", ".tmp")
    )


def test_neither_a_finished_nor_a_failed_run_leaves_litter(tmp_path):
    train(tmp_path, save_strategy="epoch", save_total_limit=1)
    assert litter(tmp_path) == []
    with pytest.raises(Killed):
        train(tmp_path, Kill(3))
    assert litter(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_logits", "_logits-1", "checkpoint-6"]


def test_what_a_kill_left_half_written_goes_with_the_next_run(tmp_path, monkeypatch):
    child = os.fork()
    if not child:
        monkeypatch.setattr("os.replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        LogitsStore.create(tmp_path / "_logits", 4, (3,), "float16", "toy")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (tmp_path / "_logits.tmp" / "open").mkdir(parents=True)  # left from restoring a checkpoint's store
    assert litter(tmp_path) == [".store.json.tmp", "_logits.tmp"]
    train(tmp_path)
    assert litter(tmp_path) == []


def test_killed_again_and_again_before_a_checkpoint_piles_nothing_up(tmp_path):
    for step in (1, 3, 5):  # a step is half an epoch
        with pytest.raises(Killed):
            train(tmp_path, Kill(step))
    train(tmp_path)
    asides = sorted(path.name for path in tmp_path.glob("_logits-*"))
    held = [LogitsStore.open(tmp_path / name).sealed_epochs for name in asides]
    # The same run each time, so the newest holds all that the others held.
    assert (len(asides), held) == (1, [[0, 1]])


def test_an_older_store_stays_where_it_holds_what_no_newer_one_does(tmp_path):
    for seed, epochs in ((1, 2), (2, 1), (2, 2), (3, 1)):
        train(tmp_path, seed=seed, num_train_epochs=epochs)
    asides = {path.name: LogitsStore.open(path).sealed_epochs for path in tmp_path.glob("_logits-*")}
    # Seed 1 and seed 2 with two epochs stay. Seed 2 with one epoch is gone, because the next run holds that epoch too.
    assert asides == {"_logits-1": [0, 1], "_logits-3": [0, 1]}


def test_a_store_that_the_user_has_named_so_is_not_touched(tmp_path):
    train(tmp_path / "run", logits_dir=str(tmp_path / "run" / "_logits-7"))
    for _ in range(3):
        train(tmp_path / "run")
    assert LogitsStore.open(tmp_path / "run" / "_logits-7").sealed_epochs == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "run").glob("_logits*")) == ["_logits", "_logits-7", "_logits-9"]


def test_a_resume_keeps_epochs_of_another_run_that_have_the_same_number(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    train(tmp_path, seed=1, **saving)
    saved = tmp_path / "checkpoint-4"
    saved.rename(tmp_path / "kept")
    train(tmp_path, seed=2)
    other = {epoch: (tmp_path / "_logits" / f"epoch-{epoch:04d}.npy").read_bytes() for epoch in range(3)}
    train(tmp_path, resume=str(tmp_path / "kept"), seed=1, **saving)
    aside = LogitsStore.open(tmp_path / "_logits-2")
    assert {epoch: aside.epoch_path(epoch).read_bytes() for epoch in aside.sealed_epochs} == other


# ---- resuming


def test_a_checkpoint_is_resumed_into_folders_that_are_not_there_yet(tmp_path):
    train(tmp_path / "run", save_strategy="steps", save_steps=3)
    new = {"logits_dir": str(tmp_path / "a" / "b" / "_logits")}
    train(tmp_path / "new", resume=str(tmp_path / "run" / "checkpoint-3"), **new)
    assert LogitsStore.open(new["logits_dir"]).sealed_epochs == [0, 1, 2]


def test_a_store_that_was_moved_aside_can_be_moved_back(tmp_path):
    train(tmp_path)
    train(tmp_path)
    files.remove(tmp_path / "_logits")
    (tmp_path / "_logits-1").rename(tmp_path / "_logits")
    copy = LogitsStore.open(tmp_path / "_logits").copy(tmp_path / "copy", {})
    assert not copy.is_aside
    train(tmp_path)
    assert LogitsStore.open(tmp_path / "_logits-1").sealed_epochs == [0, 1, 2]


def test_resuming_from_output_dir_is_refused_by_name_and_moves_nothing(tmp_path):
    trainer = train(tmp_path, save_strategy="steps", save_steps=4)
    trainer.save_model()
    trainer.save_state()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"is a run's own, .* Use resume_from_checkpoint=True for the last one"):
        train(tmp_path, resume=str(tmp_path), num_train_epochs=4)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    train(tmp_path, resume=True, num_train_epochs=4)  # as the message advises
    assert LogitsStore.open(tmp_path / "_logits").sealed_epochs == [0, 1, 2, 3]


def test_resuming_from_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-9"))
