"""Two nodes that share no disk, each in a network namespace of its own, started by `torchrun --nnodes 2`.

Needs root and `ip` (Debian: iproute2): `pytest -m netns`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import many_toys
from lstsd_hf import LogitsStore

TESTS = Path(__file__).parent
NODES = ("lstsd-a", "lstsd-b")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def reason_to_skip() -> str | None:
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "two nodes need root and the ip command (Debian: iproute2)"
    try:
        ip("netns", "add", "lstsd-probe")
        ip("netns", "delete", "lstsd-probe")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return None


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.suppress(subprocess.CalledProcessError):  # what a killed test run left
        ip("netns", "delete", NODES[0])
        ip("netns", "delete", NODES[1])
    for node in NODES:
        ip("netns", "add", node)
    ip("link", "add", "lstsd0", "netns", NODES[0], "type", "veth", "peer", "name", "lstsd0", "netns", NODES[1])
    for number, node in enumerate(NODES, start=1):
        ip("-n", node, "address", "add", f"10.77.0.{number}/24", "dev", "lstsd0")
        ip("-n", node, "link", "set", "lstsd0", "up")
        ip("-n", node, "link", "set", "lo", "up")
    yield
    for node in NODES:
        ip("netns", "delete", node)


def start(*folders: list[Path]) -> None:
    """Runs `node_runs.py` on each node, into that node's folders, and waits for both."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lstsd0"}
    running = []
    for rank, (node, own) in enumerate(zip(NODES, zip(*folders, strict=True), strict=True)):
        launch = ["-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=2"]
        command = [sys.executable, *launch, "--master_addr=10.77.0.1", "--master_port=29577"]
        command += [str(TESTS / "node_runs.py"), *map(str, own)]
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", node, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300)[0][-8000:] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)


def mend(cut: list[Path]) -> None:
    for name in ("model.safetensors", "config.json"):  # transformers 5.23 saves the model on the first node only
        shutil.copy(cut[0] / "checkpoint-4" / name, cut[1] / "checkpoint-4" / name)


def sealed(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("_logits/*.npy")}


@pytest.mark.netns
def test_nodes_that_share_no_disk_end_with_the_same_files(network, tmp_path):
    whole, cut = ([tmp_path / name / node for node in NODES] for name in ("whole", "cut"))
    start(whole, cut)
    first, second = map(sealed, whole)
    assert len(first) == 6  # four epochs, the labels, and the margin
    assert first == second
    for folder in whole:
        store = LogitsStore.open(folder / "_logits")
        store.verify()
        assert np.isfinite(store.read(3, range(48))).all()
    for number in range(2, 13, 2):
        saved = [LogitsStore.open(folder / f"checkpoint-{number}" / "_logits") for folder in whole]
        for store in saved:
            store.verify()
        journals = [{path.name: path.read_bytes() for path in (store.path / "open").iterdir()} for store in saved]
        assert journals[0] == journals[1]  # each node could go on alone

    mend(cut)
    mend([folder / "many" for folder in cut])
    start(cut)
    assert sealed(cut[0]) == sealed(cut[1]) == first
    expected = torch.load(whole[0] / "weights.pt")
    for folder in cut:
        assert torch.equal(torch.load(folder / "weights.pt"), expected)

    # Samples of many rows.
    first, second = (sealed(folder / "many") for folder in whole)
    assert len(first) == 14  # three epochs of values, classes, rest and offsets, and the labels and their offsets
    assert first == second == sealed(cut[0] / "many") == sealed(cut[1] / "many")
    for folder in whole:
        store = LogitsStore.open(folder / "many" / "_logits")
        store.verify()
        lengths = [len(tokens) - 1 for tokens in many_toys.data("vocabulary", 48)["input_ids"]]
        assert np.diff(store.epoch_parts(2)["offsets"]).tolist() == lengths
        assert len(store.read_row_labels().labels) == sum(lengths)
