"""When a process began, and how jobs end where no stage has run."""

import subprocess
import sys
import time
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


def test_the_time_before_a_job_imported_anything_is_known() -> None:
    before = time.time()
    code = "import time; time.sleep(0.5); from pipelines import cli; print(cli.process_began())"
    began = float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
    assert before - 0.05 <= began < time.time() - (0.5 if sys.platform == "linux" else 0.0)
