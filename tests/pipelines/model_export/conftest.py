"""Tracing without its own protocol: pytest collects every record, and PyTorch then writes megabytes of them."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet_tracing() -> Iterator[None]:
    """While the tests of this folder run."""
    protocol = logging.getLogger("torch.__trace")
    before, protocol.disabled = protocol.disabled, True
    yield
    protocol.disabled = before
