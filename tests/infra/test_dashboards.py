"""Dashboard and alerts ask for metrics that Ray or a job of ours exports, in queries that Prometheus understands."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from pipelines import live_metrics

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "dashboards"
OURS = {f"ray_{name}_total" for name in live_metrics.COUNTERS} | {f"ray_{name}" for name in live_metrics.GAUGES}
ON_A_GPU = {"ray_node_gpus_utilization", "ray_node_gram_used"}
ON_WORK = {"ray_tasks"}


def _dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "segpipe.json").read_text())
    return content


def _queries() -> dict[str, str]:
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$job", ".*")
        for panel in _dashboard()["panels"]
        for target in panel["targets"]
    }
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    return panels | {rule["alert"]: rule["expr"] for rule in rules}


def _metrics(query: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", query))


ASKED = set().union(*map(_metrics, _queries().values()))


@pytest.mark.parametrize("name", _queries())
def test_prometheus_understands(name: str) -> None:
    promql_parser.parse(_queries()[name])


def test_a_broken_query_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(rate(ray_segpipe_images_total[5m])")


def test_every_metric_is_ours_or_rays() -> None:
    """Ray's are those that its own dashboard asks for, and those of its node reporter."""
    of_dashboards = _metrics(Path(default_dashboard_panels.__file__).read_text())
    of_nodes = {f"ray_{name}" for name in METRICS_GAUGES}
    unknown = ASKED - OURS - of_dashboards - of_nodes
    assert not unknown, f"asked for and exported by nobody: {sorted(unknown)}"


def test_all_that_we_export_is_shown() -> None:
    assert OURS <= ASKED


def test_panels_have_places_of_their_own_and_the_provisioned_source() -> None:
    panels = _dashboard()["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    (source,) = yaml.safe_load((FOLDER / "grafana_source.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_prometheus_loads_the_rules_and_asks_rays_port() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert [(FOLDER / name).exists() for name in config["rule_files"]] == [True]
    compose = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())["services"]
    (names,) = config["scrape_configs"][1]["dns_sd_configs"]
    assert set(names["names"]) <= set(compose)
    for name in names["names"]:
        assert f"--metrics-export-port={names['port']}" in " ".join(compose[name]["command"])


# --- what Ray exports -------------------------------------------------------------------------------------------------


def _exported(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


@pytest.fixture(scope="module")
def exported(ray_session: None) -> Iterator[str]:
    """A node's metrics after every one of ours was used once, and one task ran."""
    import ray

    for name, (_, labels) in live_metrics.COUNTERS.items():
        live_metrics.count(name, 2, dict.fromkeys(labels, "infer"))
        live_metrics.count(name, 0, dict.fromkeys(labels, "infer"))  # Ray refuses a zero
    for name in live_metrics.GAUGES:
        live_metrics.show(name, 7)
    task: Any = ray.remote(num_cpus=0)(lambda: 0)
    ray.get(task.remote())
    port = ray.nodes()[0]["MetricsExportPort"]
    until, text = time.monotonic() + 60, ""
    while time.monotonic() < until and not all(name in text for name in OURS):
        time.sleep(0.5)
        text = _exported(port)
    yield text


@pytest.mark.slow
def test_all_that_is_asked_for_is_exported(exported: str) -> None:
    names = set(re.findall(r"^(ray_\w+)\{", exported, re.MULTILINE))
    assert not ASKED - names - ON_A_GPU - ON_WORK


@pytest.mark.slow
def test_values_arrive(exported: str) -> None:
    assert re.search(r'^ray_segpipe_stage_seconds_total\{.*stage="infer".*\} 2\.0$', exported, re.MULTILINE)
    assert re.search(r"^ray_segpipe_images_waiting\{.*\} 7\.0$", exported, re.MULTILINE)
