"""Compiling where numba finds no place to keep what it compiled."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest

from segcore import compiled
from segcore.compiled import entry_point


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_cache(function: Any, *, nogil: bool, cache: bool = False) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available for file 'kernels.py'")
        return numba.njit(function, nogil=nogil)

    def double(value: int) -> int:
        return 2 * value

    monkeypatch.setattr(compiled, "numba", SimpleNamespace(njit=refuse_cache))  # numba itself compiles with its own
    kernel = entry_point(double)
    assert kernel is not double
    assert kernel(21) == 42


def test_a_changed_kernel_in_another_file_is_compiled_anew(tmp_path: Path) -> None:
    """Regression: numba looks at the file of the entry point alone, and ran the old kernel without a word."""
    (tmp_path / "inner.py").write_text("from segcore.compiled import kernel\n@kernel\ndef add(x): return x + 1\n")
    (tmp_path / "outer.py").write_text(
        "from inner import add\nfrom segcore.compiled import entry_point\n@entry_point\ndef run(x): return add(x)\n"
        "print(run(1))\n"
    )

    def printed() -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        command = [sys.executable, str(tmp_path / "outer.py")]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    assert printed() == "2"
    inner = tmp_path / "inner.py"
    inner.write_text(inner.read_text().replace("x + 1", "x + 2"))
    assert printed() == "3"
