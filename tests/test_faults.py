"""A run that is killed again and again ends like one that was not; the harness is `fault_runs.py`.

The long form, 60 kills: `pytest -m slow`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")
@pytest.mark.parametrize(("kills", "seed"), [(10, 0), pytest.param(60, 1, marks=pytest.mark.slow)])
def test_killed_runs_end_like_one_that_was_not(tmp_path, kills, seed):
    done = subprocess.run(
        [sys.executable, str(TESTS / "fault_runs.py"), str(tmp_path), str(kills), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= kills
    assert len(found["of"]) >= kills // 2  # of many kinds
