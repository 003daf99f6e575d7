"""Trainings on several processes of this machine, which take turns in step."""

import os
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from .measure import take_turns
from .workload import Setting, hush, trainings


def side_by_side(setting: Setting, timed: int, skip: int, warm_up: int) -> dict[str, list[float]]:
    """The seconds per step of plain DDP and of LSTSD, measured in the first process; see `take_turns`.

    Every process passes the turn to the other training after the same step, so that all processes are in the same
    training when they meet in a collective.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with ProcessPoolExecutor(setting.processes, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(_run, setting, rank, port, timed, skip, warm_up) for rank in range(setting.processes)]
        of_ranks = [rank.result() for rank in ranks]
    return of_ranks[0]


def _run(setting: Setting, rank: int, port: int, timed: int, skip: int, warm_up: int) -> dict[str, list[float]]:
    hush()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(setting.processes),
        "LOCAL_WORLD_SIZE": str(setting.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    seconds = take_turns(trainings(setting, ("plain", "lstsd"), together=False), timed, skip, warm_up)
    torch.distributed.destroy_process_group()
    return seconds
