"""Two processes against one: DDP on gloo, on CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import many_toys
from distributed_runs import FIRST_ID, MANY, VARIANTS, main, resumable
from lstsd_hf import LogitsStore, StoreMismatchError
from toys import rows, tiny_bert

TESTS = Path(__file__).parent


def torchrun(*command: str) -> None:
    """Runs a script in two processes under torchrun; shows its output if it fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch("torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", *command)


def launch(launcher: str, *command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-m", launcher, *command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, Path]:
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in (1, 2)}
    main(folders[1], world=1)
    torchrun(str(TESTS / "distributed_runs.py"), str(folders[2]))
    return folders


# Variants in which two processes see the same batches as one. That fails where each groups its own rows by length.
NOTHING_PADDED = [
    name for name, (count, batch, *_) in VARIANTS.items() if count % batch == 0 and name != "grouped by length"
]


@pytest.mark.parametrize("name", NOTHING_PADDED)
def test_two_processes_learn_what_one_does(runs, name):
    one, two = (torch.load(runs[world] / name / "weights.pt") for world in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=0)
    logs = [json.loads((runs[world] / name / "log.json").read_text()) for world in (1, 2)]
    for part in ("loss", "base_loss", "long_term_loss", "short_term_loss", "long_term_agreement", "eval_loss"):
        one_log, two_log = ([entry[part] for entry in log if part in entry] for log in logs)
        assert two_log == pytest.approx(one_log, abs=1e-5), part
        assert one_log or (part == "long_term_agreement" and name == "regression"), part


def test_two_processes_measure_the_memory_that_one_does(runs):
    """The variant has enough steps in an epoch, and so few epochs that rounding changes no prediction."""
    logs = [json.loads((runs[world] / "cut short" / "log.json").read_text()) for world in (1, 2)]
    one, two = ([entry for entry in log if "memorised" in entry] for log in logs)
    assert len(one) == len(two) == 3
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_leave_the_predictions_that_one_does(runs, name):
    count = VARIANTS[name][0]
    one, two = (LogitsStore.open(runs[world] / name / "_logits") for world in (1, 2))
    assert one.sealed_epochs == two.sealed_epochs == [0, 1, 2, 3]
    for store in (one, two):
        store.verify()
        assert (store.read_labels() is None) == (name == "mapped labels")
        assert not list((store.path / "open").iterdir())
    for epoch in two.sealed_epochs:
        first, second = one.read(epoch, range(count)), two.read(epoch, range(count))
        if name in NOTHING_PADDED:
            np.testing.assert_allclose(second, first, atol=1e-4)
        unseen = np.isnan(second).any(axis=1).sum()
        cut = 32 if name == "cut short" and epoch == 3 else 0  # 14 steps: three epochs of 4, and half of one
        assert unseen == (count % 16 if name == "dropped" else cut)


def test_two_processes_record_the_bytes_that_one_does(runs):
    one, two = (runs[world] / "recorded" for world in (1, 2))
    names = sorted(path.name for path in one.iterdir())
    assert names == ["epoch-0000.npy", "inputs-0000.npy", "open", "store.json"]
    for name in names:
        if name != "open":
            assert (two / name).read_bytes() == (one / name).read_bytes()
    assert not list((two / "open").iterdir())


@pytest.mark.parametrize(("name", "least"), [("honest_gate", 0.3), ("honest_smoothing", 0.05)])
def test_two_processes_believe_what_one_does(runs, name, least):
    logs = [json.loads((runs[world] / "honest" / "log.json").read_text()) for world in (1, 2)]
    one, two = ([entry[name] for entry in log if name in entry] for log in logs)
    assert two == pytest.approx(one, abs=1e-6)
    assert one[-1] > least


@pytest.mark.parametrize("name", MANY)
def test_two_processes_and_samples_of_many_rows(runs, name):
    """They record each row and each label once, as one process does. Without padding, the weights are the same too."""
    stores = [LogitsStore.open(runs[world] / name / "_logits") for world in (1, 2)]
    one, two = stores
    assert one.sealed_epochs == two.sealed_epochs == [0, 1, 2]
    for store in stores:
        store.verify()
        assert not list((store.path / "open").iterdir())
    for part in (0, 1):
        assert np.array_equal(one.read_row_labels()[part], two.read_row_labels()[part])
    for epoch in two.sealed_epochs:
        assert np.array_equal(*(store.epoch_parts(epoch)["offsets"] for store in stores))
    if "padded" in name:
        assert np.isfinite(two.epoch_rows(2)).all()
        return
    for epoch in two.sealed_epochs:
        np.testing.assert_allclose(two.epoch_rows(epoch), one.epoch_rows(epoch), atol=1e-4)
    weights = [torch.load(runs[world] / name / "weights.pt") for world in (1, 2)]
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=0)
    logs = [json.loads((runs[world] / name / "log.json").read_text()) for world in (1, 2)]
    for part in ("loss", "base_loss", "long_term_loss", "short_term_loss", "short_term_coverage"):
        one_log, two_log = ([entry[part] for entry in log if part in entry] for log in logs)
        assert two_log == pytest.approx(one_log, abs=1e-5), part
        assert one_log, part


def test_two_processes_read_a_stream_of_tokens(runs):
    store = LogitsStore.open(runs[2] / "stream" / "_logits")
    store.verify()
    lengths = [len(tokens) - 1 for tokens in many_toys.data("tokens", 32)["input_ids"]]
    assert [np.diff(store.epoch_parts(epoch)["offsets"]).tolist() for epoch in (0, 1)] == [lengths] * 2


def test_of_a_sample_that_padding_repeats_the_first_record_stays(runs):
    """42 samples in batches of 2 x 8: the last batch is padded with 6 samples of the first, whose prediction stays."""
    with torch.no_grad():
        model = tiny_bert(dropout=0.0).eval()
        at_first = model(torch.tensor(rows(42)["input_ids"][:])).logits.numpy()
    found = LogitsStore.open(runs[2] / "padded" / "_logits").read(0, range(42))
    assert np.isclose(found, at_first, atol=1e-6).all(axis=1).sum() == 16


def test_accelerate_launches_the_same_run(runs, tmp_path):
    # --multi_gpu is accelerate's name for one process per device; ACCELERATE_USE_CPU makes the devices CPUs.
    settings = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    script = [str(TESTS / "distributed_runs.py"), str(tmp_path), "classes"]
    launch("accelerate.commands.launch", *settings, *script)
    theirs, ours = (torch.load(folder / "classes" / "weights.pt") for folder in (tmp_path, runs[2]))
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("stop", [4, 6])
def test_two_processes_resume_exactly(runs, stop):
    whole, cut = (
        {file.name: file.read_bytes() for file in (runs[2] / name / "_logits").glob("*.npy")}
        for name in ("whole", f"cut {stop}")
    )
    assert len(whole) == 7  # four epochs, the ids, the labels, and the margin
    assert whole == cut
    whole, cut = (
        {file.name: file.read_bytes() for file in (runs[2] / "many" / name / "_logits").glob("*.npy")}
        for name in ("whole", f"cut {stop}")
    )
    assert len(whole) == 13  # five epochs and their offsets, the ids, the labels and theirs
    assert whole == cut


def test_one_process_goes_on_where_two_were_preempted(runs, tmp_path):
    saved = runs[2] / "for another number of processes" / "checkpoint-4"
    journals = sorted(path.name for path in (saved / "_logits" / "open").iterdir())
    assert journals == ["epoch-0001.rank-00000.journal", "epoch-0001.rank-00001.journal"]
    resumable(tmp_path, world=1).train(resume_from_checkpoint=str(saved))
    store = LogitsStore.open(tmp_path / "_logits")
    store.verify()
    assert np.isfinite(store.read(3, [FIRST_ID + 5 * i for i in range(42)])).all()
    with pytest.raises(StoreMismatchError, match="saved with 3 steps per epoch, and this run has 6"):
        resumable(tmp_path, world=2).train(resume_from_checkpoint=str(saved))
