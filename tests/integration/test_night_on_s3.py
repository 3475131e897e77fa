"""The script beside this file, in a process of its own: in short on every change; with kills before a release."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.processes import needs_proc

ROOT = Path(__file__).resolve().parents[2]


def night(*flags: str, seconds: float) -> str:
    """Run it; its output, or an AssertionError with what it said last."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.night_on_s3", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


@needs_proc
def test_every_stage_works_on_s3_and_three_nodes_while_a_tenth_of_the_requests_fails() -> None:
    said = night(
        *("--no-kills", "--one-process", "--fault-rate", "0.1", "--images", "10"),
        *("--server", "moto", "--mlflow", "sqlite"),
        seconds=400,
    )
    assert "nothing new" in said


@needs_proc
@pytest.mark.slow
def test_whatever_dies_in_whichever_stage_nothing_is_lost_and_nothing_is_twice() -> None:
    assert said_of_kills(night(seconds=3000)) == 5 * 3


@needs_proc
@pytest.mark.slow
def test_every_stage_finishes_while_a_tenth_of_the_requests_fails_on_a_real_store() -> None:
    assert "of them failed" in night("--no-kills", "--fault-rate", "0.1", seconds=1200)


def said_of_kills(said: str) -> int:
    """Lines of stages in which something was killed."""
    return sum(" killed: " in line for line in said.splitlines())
