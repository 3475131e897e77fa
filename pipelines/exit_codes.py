"""How a job ended, as schedulers read it."""

DONE = 0
FAILED = 1
"""A bug or a lost cluster, with a traceback; or an object store that does not answer, with one message."""
BAD_INPUT = 2
"""Bad input or configuration; one message."""
OUTAGE = 3
"""`segment` stopped because too many images failed: see --max-failure-rate."""
BUSY = 4
"""Another job is at work on the same tables."""
UNHEALTHY = 5
"""`doctor` has written its report, and the dataset has errors (with --strict: or warnings)."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM."""


class JobStoppedError(Exception):
    """A job ended by itself, for a reason that is neither bad input nor a bug; `exit_code` says which.

    Attributes:
        exit_code: one of the codes above.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type["JobStoppedError"], tuple[str, int]]:
        return JobStoppedError, (str(self), self.exit_code)
