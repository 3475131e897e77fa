"""How every job starts and ends: parse, run one stage, print one closing line, exit with a code for scripts."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

T = TypeVar("T")


class Result(Protocol):
    """What a stage returns: anything that can say in one line where its result is."""

    @property
    def closing_line(self) -> str: ...


def main(parse: Callable[[], T], stage: Callable[[T], Result]) -> NoReturn:
    """Parse the command line, run the stage, print its closing line and exit.

    Exit codes: 0 done; 1 a bug or a lost cluster (with traceback); 2 bad input or configuration (one message, no
    traceback); 130 interrupted. SIGTERM is treated as Ctrl-C, so that `ray job stop` and schedulers end a job cleanly.
    """
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%H:%M:%S")
    for noisy in ("ray.data", "ray.train", "mlflow", "alembic", "botocore", "aiobotocore", "fsspec", "s3fs"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")  # ray's own deprecations, not the user's
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = stage(parse())  # configs check themselves while they are parsed
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        logging.getLogger(__name__).debug("traceback of the error above", exc_info=True)
        sys.exit(EXIT_BAD_INPUT)
    print(result.closing_line)
    sys.exit(0)
