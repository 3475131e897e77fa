"""How this package compiles with numba."""

import hashlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def entry_point(function: Function) -> Function:
    """Compile at the first call, without the interpreter lock: threads of one process work side by side.

    Compiled code is kept beside the function's file or in the user's cache, so that only the first process on a machine
    spends some seconds on it; an installation without any writable place compiles in each process. For functions of
    arrays and numbers only: numba's cache cannot be read once a named tuple of its signatures has been renamed.

    numba compiles anew when the function's own file has changed, but not when a kernel that it imports has: those files
    enter the name that the compiled code is kept under.
    """
    imported = _modules_of_kernels(function)
    if imported:
        digest = hashlib.sha256("".join(inspect.getsource(sys.modules[name]) for name in imported).encode())
        function.__qualname__ += f"_{digest.hexdigest()[:8]}"
    try:
        return cast(Function, numba.njit(function, nogil=True, cache=True))
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        return cast(Function, numba.njit(function, nogil=True))


def kernel(function: Function) -> Function:
    """Compile as part of the entry point."""
    return cast(Function, numba.njit(function, nogil=True))


def _modules_of_kernels(function: Callable[..., Any]) -> list[str]:
    """Modules other than the function's own whose compiled functions it can reach, directly or through each other.

    A compiled function has its source in `py_func`, one that emits instructions itself (`segcore.lanes`) in `_defn`.
    """
    found: set[str] = set()
    reached = [function.__module__]
    while reached:
        for value in list(vars(sys.modules[reached.pop()]).values()):
            source = getattr(value, "py_func", None) or getattr(value, "_defn", None)
            name = getattr(source, "__module__", None)
            if name is not None and name not in found and name != function.__module__:
                found.add(name)
                reached.append(name)
    return sorted(found)
