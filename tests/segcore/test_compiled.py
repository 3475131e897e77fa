"""Compiling where numba finds no place to keep what it compiled."""

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
