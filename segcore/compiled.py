"""How this package compiles with numba."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def entry_point(function: Function) -> Function:
    """Compile at the first call, without the interpreter lock: threads of one process work side by side.

    Compiled code is kept beside the function's file or in the user's cache, so that only the first process on a machine
    spends some seconds on it; an installation without any writable place compiles in each process. For functions of
    arrays and numbers only: numba's cache cannot be read once a named tuple of its signatures has been renamed.
    """
    try:
        return cast(Function, numba.njit(function, nogil=True, cache=True))
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        return cast(Function, numba.njit(function, nogil=True))


def kernel(function: Function) -> Function:
    """Compile as part of the entry point."""
    return cast(Function, numba.njit(function, nogil=True))
