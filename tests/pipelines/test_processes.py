"""The check that no test leaves a process behind would find one."""

import os
import subprocess
import sys

import pytest

from tests.pipelines.processes import descendants, kill, needs_proc, started_with


@needs_proc
def test_an_orphan_is_found_by_the_variable_that_it_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGPIPE_TEST_ORPHAN", "yes")
    program = "from subprocess import *; print(Popen(['sleep', '60'], stdout=DEVNULL, stderr=DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    orphan = int(done.stdout)
    assert orphan not in descendants(os.getpid())
    assert started_with("SEGPIPE_TEST_ORPHAN", "yes") == [orphan]
    assert started_with("SEGPIPE_TEST_ORPHAN", "no") == []
    kill([orphan])
