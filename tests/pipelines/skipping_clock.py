"""A clock that a test moves on: time limits pass without waiting, however slow the machine is."""

import time

import pytest

from pipelines.intake import timed_threads

LIMIT = 60.0
"""Seconds; long enough for whatever shall end in time."""


class SkippingClock:
    """In place of the clock of `pipelines.intake.timed_threads`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._skipped = 0.0
        self._monotonic = time.monotonic
        monkeypatch.setattr(timed_threads, "monotonic", self)
        monkeypatch.setattr(timed_threads, "LOOK_SECONDS", 0.01)

    def __call__(self) -> float:
        return self._monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        """Let this much time pass."""
        self._skipped += seconds
