"""Counters and gauges of a running job, for Prometheus; `infra/dashboards/` draws them.

Ray exports them from each node beside its own, with the prefix `ray_`, and `_total` after a counter. Where Ray does not
run in this process nothing happens, and Ray is not imported. A call costs microseconds: Ray sends the sums every ten
seconds.
"""

import sys
from collections.abc import Mapping
from typing import Any

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "segpipe_images": ("Images segmented and committed.", ()),
    "segpipe_failures": ("Images that ended in the table of failures.", ()),
    "segpipe_shards": ("Shards committed.", ()),
    "segpipe_stage_seconds": ("Seconds that workers of segment spent, by stage.", ("stage",)),
    "segpipe_train_steps": ("Optimiser steps of a training.", ()),
}
"""Name -> what it counts, and its labels."""

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "segpipe_images_waiting": ("Images of the running night that have no row yet.", ()),
}
"""Name -> what it measures, and its labels."""

_made: dict[str, Any] = {}
"""Ray's own objects of this process: each name is registered once."""


def count(name: str, amount: float, labels: Mapping[str, str] | None = None) -> None:
    """Add to a counter; an amount of zero or less adds nothing.

    Args:
        name: of `COUNTERS`.
        amount: what is added.
        labels: one value for each of the counter's labels.
    """
    if amount > 0 and (metric := _metric(name, COUNTERS)) is not None:
        metric.inc(amount, tags=dict(labels or {}))


def show(name: str, value: float) -> None:
    """Set a gauge.

    Args:
        name: of `GAUGES`.
        value: what it is now.
    """
    if (metric := _metric(name, GAUGES)) is not None:
        metric.set(value)


def _metric(name: str, table: Mapping[str, tuple[str, tuple[str, ...]]]) -> Any:
    """Ray's counter or gauge, or None where Ray does not run in this process."""
    description, labels = table[name]
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if name not in _made:
        from ray.util.metrics import Counter, Gauge

        kind = Counter if table is COUNTERS else Gauge
        _made[name] = kind(name, description=description, tag_keys=labels)
    return _made[name]
