"""`infra/kuberay/`: manifests that KubeRay's API server and operator take, checked without either."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from infra.kuberay import crd_schema
from pipelines.nightly.config import SegmentConfig
from pipelines.train import parse_command_line

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS: dict[str, Any] = json.loads(crd_schema.FIELDS.read_text())["kinds"]
MANIFESTS = crd_schema.manifests()
PLACES = [place for place, _, _ in MANIFESTS]


def _cluster_specs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (place, document["spec"].get("rayClusterSpec", document["spec"]))
        for place, kind, document in MANIFESTS
        if kind in ("RayCluster", "RayJob")
    ]


def _groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def _train_job() -> dict[str, Any]:
    (job,) = (document for place, _, document in MANIFESTS if place == "rayjob.yaml")
    return copy.deepcopy(job)


def test_everything_for_kuberay_is_checked() -> None:
    assert {(place, kind) for place, kind, _ in MANIFESTS} == {
        ("raycluster.yaml", "RayCluster"),
        ("rayjob.yaml", "RayJob"),
        ("nightly.yaml: ConfigMap", "RayJob"),
        ("nightly.yaml: CronJob", crd_schema.POD),
    }


@pytest.mark.parametrize("index", range(len(MANIFESTS)), ids=PLACES)
def test_kuberay_takes(index: int) -> None:
    _, kind, document = MANIFESTS[index]
    assert crd_schema.errors(kind, document, SCHEMAS) == []


def _planted(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is wrong -> a copy with that."""
    copies = {name: copy.deepcopy(document) for name in ("unknown", "deep", "type", "required", "value", "kind")}
    copies["unknown"]["spec"]["entrypont"] = copies["unknown"]["spec"].pop("entrypoint")
    copies["deep"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    copies["type"]["spec"]["ttlSecondsAfterFinished"] = "one day"
    del copies["required"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    copies["value"]["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "tokens"
    copies["kind"]["metadata"]["label"] = {}
    return copies


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ("unknown", r"\$\.spec: .*'entrypont' was unexpected"),
        ("deep", r"containers\[0\]: .*'imagee' was unexpected"),
        ("type", r"ttlSecondsAfterFinished: 'one day' is not of type 'integer'"),
        ("required", r"rayClusterSpec: 'headGroupSpec' is a required property"),
        ("value", r"mode: 'tokens' is not one of"),
        ("kind", r"\$\.metadata: .*'label' was unexpected"),
    ],
)
def test_a_planted_mistake_is_found(planted: str, message: str) -> None:
    (error,) = crd_schema.errors("RayJob", _planted(_train_job())[planted], SCHEMAS)
    assert re.search(message, error)


def test_an_unknown_kind_is_found() -> None:
    assert crd_schema.errors("RayJbo", {}, SCHEMAS)[0].startswith("kind 'RayJbo' is none of")


def test_the_extract_is_made_from_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a definition as controller-gen writes it: closed, without descriptions, reduced to what is used."""
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"x-kubernetes-int-or-string": True, "description": "long"},
            "unused": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "items": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
            "headGroupSpec": {"type": "object", "properties": {"template": {"type": "object", "properties": {}}}},
        },
    }
    schema = {
        "type": "object",
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "spec": spec},
    }
    versions = [{"name": "v1alpha1"}, {"name": "v1", "schema": {"openAPIV3Schema": schema}}]
    crd = {"spec": {"names": {"kind": "RayCluster"}, "versions": versions}}
    (tmp_path / "ray.io_rayclusters.yaml").write_text(yaml.safe_dump(crd))
    document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "x"},
        "spec": {"size": 3, "labels": {"any": "thing"}, "items": [{"a": "b"}]},
    }
    fields = tmp_path / "fields.json"
    monkeypatch.setattr(crd_schema, "FIELDS", fields)
    monkeypatch.setattr(crd_schema, "manifests", lambda: [("manifest.yaml", "RayCluster", document)])
    assert crd_schema.main([str(tmp_path), "--release", "v9"]) == 0
    extract = json.loads(fields.read_text())
    assert extract["release"] == "v9"
    kept = extract["kinds"]["RayCluster"]["properties"]["spec"]
    assert set(kept["properties"]) == {"size", "labels", "items"} and kept["additionalProperties"] is False
    assert kept["properties"]["size"] == {"type": ["integer", "string"]}
    document["spec"] = {"size": 3, "sise": 4}
    assert crd_schema.main([str(tmp_path), "--release", "v9"]) == 1  # and says so, before it writes anything


# --- what the operator checks beyond the schema, and what we promise --------------------------------------------------


@pytest.mark.parametrize("place", [place for place, _ in _cluster_specs()])
def test_the_operator_takes_the_cluster(place: str) -> None:
    """Its own validation: token authentication wants a version; a group without autoscaler both numbers."""
    spec = dict(_cluster_specs())[place]
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and spec["rayVersion"] == pinned[1]
    assert spec["authOptions"] == {"mode": "token"}
    # With any port named, the head's service has no other: workers would not find the head.
    assert "ports" not in spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if spec.get("enableInTreeAutoscaling"):
        assert {group["template"]["spec"]["restartPolicy"] for group in _groups(spec)} == {"Never"}


@pytest.mark.parametrize("place", [place for place, _ in _cluster_specs()])
def test_pods_are_unprivileged_and_pinned_and_hold_no_secret(place: str) -> None:
    spec = dict(_cluster_specs())[place]
    for group in _groups(spec):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert re.fullmatch(r".+:(?!latest)[\w.-]+", container["image"])
            assert not [one for one in container["env"] if re.search("KEY|SECRET|TOKEN|PASSWORD", one["name"])]
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_shared_cluster_has_workers_with_and_without_gpus() -> None:
    spec = dict(_cluster_specs())["raycluster.yaml"]
    requests = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["requests"]
        for group in spec["workerGroupSpecs"]
    }
    assert "nvidia.com/gpu" in requests["gpu"] and "nvidia.com/gpu" not in requests["cpu"]


def test_jobs_fit_their_own_cluster() -> None:
    for place, kind, document in MANIFESTS:
        if kind != "RayJob":
            continue
        words = shlex.split(document["spec"]["entrypoint"])
        assert words[0] == "python" and (ROOT / words[1]).is_file(), place
        config: Any
        if words[1] == "jobs/train.py":
            config = parse_command_line(words[2:], description="")
            threads = 1
        else:
            config = tyro.cli(SegmentConfig, args=words[2:])
            threads = config.threads
        (group,) = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert config.use_gpu and config.workers == group["replicas"] * int(requests["nvidia.com/gpu"])
        assert config.workers * threads + 1 <= group["replicas"] * int(requests["cpu"])
