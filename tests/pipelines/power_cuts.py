"""A power cut after any number of changes of the disk."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

CHANGES = ("link", "replace", "unlink", "rmdir", "mkdir")


class PowerCut(BaseException):
    """Nothing after it touches the disk: no `finally`, no clean-up."""


def die_at(monkeypatch: pytest.MonkeyPatch, step: int, *, changes: Sequence[str] = CHANGES) -> list[str]:
    """Let nothing happen on the disk from the `step`-th of some changes on; returns their names as they happen."""
    happened: list[str] = []

    def guard(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if len(happened) >= step:
                raise PowerCut
            happened.append(name)
            return change(*args, **kwargs)

        return guarded

    for name in changes:
        monkeypatch.setattr(os, name, guard(name, getattr(os, name)))
    monkeypatch.setattr(os, "fsync", guard("fsync", lambda descriptor: None))  # the real one only takes time here
    return happened
