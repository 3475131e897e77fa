"""One message to a URL when a job has ended, whichever way; it never changes how the job ends."""

import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0


def check_url(url: str) -> None:
    """Refuse what is no web address, before hours of work.

    Raises:
        ValueError: it is not http:// or https://, or names no host.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--webhook is no http:// or https:// address with a host (scheme {parts.scheme!r}); give one")


def post(url: str, message: Mapping[str, Any]) -> bool:
    """POST a message as JSON; True where a server took it (2xx).

    A server that does not answer, or answers 5xx, is asked `ATTEMPTS` times. The address is not logged beyond its host:
    the rest of it is often a secret.
    """
    host = urllib.parse.urlsplit(url).hostname
    data = json.dumps(message).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method="POST")
    problem = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code < 500:
                break
        except OSError as error:  # no route, no answer, no certificate; URLError is one
            problem = type(error).__name__
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_SECONDS * attempt)
    logger.warning("the webhook at %s was not reached: %s", host, problem)
    return False
