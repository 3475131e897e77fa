"""How jobs end where no stage has run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_help_may_be_cut_short() -> None:
    """As `python jobs/segment.py --help | head` does."""
    code = "from pipelines import cli; cli.main(lambda: [print('x' * 100) for _ in range(10_000)], lambda _: None)"
    job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert job.stdout and job.stderr
    assert job.stdout.readline() == b"x" * 100 + b"\n"
    job.stdout.close()
    assert job.stderr.read() == b""
    assert job.wait() == 0
    job.stderr.close()
