"""Metrics of a running job: harmless where Ray does not run, cheap where it does."""

import subprocess
import sys
import time

import pytest

from pipelines import live_metrics


def test_without_ray_nothing_happens_and_ray_is_not_imported() -> None:
    code = (
        "import sys; from pipelines import live_metrics as m; m.count('segpipe_images', 3); "
        "m.show('segpipe_images_waiting', 1); assert not m._made and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_name_is_an_error_even_without_ray() -> None:
    with pytest.raises(KeyError, match="segpipe_image"):
        live_metrics.count("segpipe_image", 1)


def test_a_call_costs_microseconds(ray_session: None) -> None:
    live_metrics.count("segpipe_stage_seconds", 1, {"stage": "infer"})
    fastest = float("inf")
    for _ in range(20):  # of 20, so that other load does not matter
        began = time.perf_counter()
        for _ in range(100):
            live_metrics.count("segpipe_stage_seconds", 0.01, {"stage": "infer"})
        fastest = min(fastest, (time.perf_counter() - began) / 100)
    assert fastest < 1e-3  # a shard makes ten such calls, and takes seconds


def test_a_missing_label_is_an_error(ray_session: None) -> None:
    with pytest.raises(ValueError, match="stage"):
        live_metrics.count("segpipe_stage_seconds", 1)
