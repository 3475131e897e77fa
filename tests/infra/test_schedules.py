"""Schedules of a night: what they start is what the jobs understand."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from pipelines.maintain import MaintainConfig
from pipelines.nightly.config import SegmentConfig

INFRA = Path(__file__).resolve().parents[2] / "infra"


def _nightly() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((INFRA / "kuberay" / "nightly.yaml").read_text())
    return {document["kind"]: document for document in documents}


def _ray_job() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load(_nightly()["ConfigMap"]["data"]["rayjob.yaml"])
    return job


def _segment_config(command: str) -> SegmentConfig:
    words = shlex.split(command)
    place = words.index("jobs/segment.py")
    return tyro.cli(SegmentConfig, args=words[place + 1 :])


def test_the_night_on_kubernetes_is_a_command_that_segment_understands() -> None:
    spec = _ray_job()["spec"]
    config = _segment_config(spec["entrypoint"])
    workers = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert config.use_gpu and config.workers == sum(group["replicas"] for group in workers)
    cpus = [int(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]) for group in workers]
    assert config.workers * config.threads + 1 <= sum(group["replicas"] * cpus[0] for group in workers)


def test_the_nights_on_one_machine_are_commands_that_the_jobs_understand() -> None:
    text = (INFRA / "nightly.cron").read_text()
    variables = dict(re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE))

    def command(job: str) -> str:
        (line,) = (line for line in text.splitlines() if job in line)
        return re.sub(r"\$([A-Z_]+)", lambda match: variables[match[1]], line.split(">>")[0].split("&&")[1])

    config = _segment_config(command("jobs/segment.py"))
    assert (config.images, config.tables) == (variables["IMAGES"], variables["TABLES"])
    words = shlex.split(command("jobs/maintain.py"))
    maintain = tyro.cli(MaintainConfig, args=words[words.index("jobs/maintain.py") + 1 :])
    assert maintain.tables == variables["TABLES"] and maintain.apply


def test_what_the_cron_job_may_do_is_what_it_does() -> None:
    nightly = _nightly()
    (rule,) = nightly["Role"]["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    pod = nightly["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == nightly["ServiceAccount"]["metadata"]["name"]
    assert pod["volumes"][0]["configMap"]["name"] == nightly["ConfigMap"]["metadata"]["name"]


def test_a_misspelt_flag_of_a_schedule_is_noticed() -> None:
    with pytest.raises(SystemExit):
        _segment_config("python jobs/segment.py --images a --model b --tables c --use-gpus")
