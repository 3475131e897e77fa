"""`ray_cluster.yaml` and `runtime_env.yaml`, checked without a cloud: Ray's own schema, and pins that must agree."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


def validate(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # validate_config alone gives a misleading message: it expects what prepare_config fills in.
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster_file() -> None:
    prepared = validate(load("ray_cluster.yaml"))
    assert prepared["provider"]["type"] == "aws"


def test_ray_refuses_the_cluster_file_with_a_misspelt_key() -> None:
    with pytest.raises(Exception, match="max_workrs"):
        validate({**load("ray_cluster.yaml"), "max_workrs": 3})


def test_the_head_computes_nothing_and_is_never_spot() -> None:
    config = load("ray_cluster.yaml")
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_start_at_none_and_both_kinds_have_a_spot_type() -> None:
    config = load("ray_cluster.yaml")
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert {kind["min_workers"] for kind in workers.values()} == {0}
    spot = [
        kind for kind in workers.values() if kind["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    ]
    assert any(kind["resources"].get("GPU") for kind in spot)
    assert any(not kind["resources"].get("GPU") for kind in spot)


def test_gpu_workers_run_the_gpu_image() -> None:
    for name, kind in load("ray_cluster.yaml")["available_node_types"].items():
        if kind["resources"].get("GPU"):
            assert kind["docker"]["worker_image"].endswith("-gpu"), name


def test_images_carry_the_ray_that_was_tested() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    images = re.findall(r"rayproject/ray:(\S+)", (ROOT / "ray_cluster.yaml").read_text())
    assert images
    assert {image.split("-")[0] for image in images} == {pinned[1]}


def test_containers_know_the_region_and_ask_for_the_token() -> None:
    config = load("ray_cluster.yaml")
    environment = dict(re.findall(r"--env (\w+)=(\S+)", "\n".join(config["docker"]["run_options"])))
    assert environment["AWS_REGION"] == config["provider"]["region"]
    assert environment["RAY_AUTH_MODE"] == "token"


def test_mounted_files_exist_and_hold_no_data() -> None:
    for target, source in load("ray_cluster.yaml")["file_mounts"].items():
        if source.startswith("./"):
            assert (ROOT / source).is_file(), f"{target} is mounted from {source}, which is not there"
        else:
            assert source == "~/.ray/auth_token"


def test_jobs_leave_environment_and_data_at_home() -> None:
    runtime_env = load("runtime_env.yaml")
    assert {".venv/", ".git/", "/data/", "/demo/", "/mlruns/"} <= set(runtime_env["excludes"])


def test_jobs_set_on_a_cluster_what_the_embedded_ray_sets() -> None:
    from pipelines.cluster import QUIET_ENVIRONMENT

    for key, value in load("runtime_env.yaml")["env_vars"].items():
        assert QUIET_ENVIRONMENT[key] == value
