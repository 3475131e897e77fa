"""The commands that the documents show, read by the parsers of what they call; nothing is run."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import local_services
from pipelines import cli

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("cluster", "comparison", "doctor", "evaluation", "export", "nightly", "training")
DOCUMENTS = ("README.md", *(f"docs/{stage}.md" for stage in STAGES))
PLACEHOLDER = re.compile(r"\.\.\.|<\w+>|--help")


def _commands(document: str, first_word: str) -> list[str]:
    """Lines of bash blocks that begin with a word, and what `ray job submit` is to run; jobs within the text too."""
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks += [code.replace("\n", " ") for code in re.findall(r"`(python jobs/[^`]+)`", prose)]
    lines = [
        re.sub(r"(^|\s)#.*", "", line).strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()
    ]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\s--\s+(?=python )", line)]
    return [part for part in parts if part.startswith(first_word) and not PLACEHOLDER.search(part)]


JOBS = [command for document in DOCUMENTS for command in _commands(document, "python jobs/")]
RAY = [command for document in DOCUMENTS for command in _commands(document, "ray ")]
LOCAL = [command for document in DOCUMENTS for command in _commands(document, "infra/local.sh ")]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Runs a job's script up to its parser, which every job hands to `cli.main`; returns what that read."""
    configs: list[Any] = []
    monkeypatch.setattr(cli, "main", lambda parse, stage: configs.append(parse()))

    def parse(command: str) -> Any:
        script, *words = shlex.split(command.replace("$PWD", "/data"))[1:]
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        return configs.pop()

    return parse


@pytest.mark.parametrize("command", dict.fromkeys(JOBS))
def test_a_documented_job_is_read_by_its_own_parser(command: str, parsed: Callable[[str], Any]) -> None:
    assert type(parsed(command)).__name__.endswith("Config")


def test_a_mistyped_flag_is_noticed(parsed: Callable[[str], Any]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(f"{JOBS[0]} --no-such-flag 1")


def test_each_document_shows_jobs() -> None:
    assert all(_commands(document, "python jobs/") for document in DOCUMENTS)
    assert len(JOBS) >= 15 and len(RAY) >= 8 and len(LOCAL) >= 4


@pytest.mark.parametrize("command", dict.fromkeys(RAY))
def test_ray_reads_the_command(command: str) -> None:
    from ray.scripts.scripts import cli

    words = shlex.split(command.replace("$PWD", "/data"))[1:]
    found: Any = cli
    while hasattr(found, "get_command"):
        name = words.pop(0)
        found = found.get_command(None, name)
    assert found is not None, f"ray has no command {name!r}"
    if name == "submit":  # what it runs is a job's command, cut off above
        words += ["--", "python", "x.py"]
        for flag in ("--working-dir", "--runtime-env"):
            assert (ROOT / words[words.index(flag) + 1]).exists()
    found.make_context(name, words)


@pytest.mark.parametrize("command", dict.fromkeys(LOCAL))
def test_the_local_servers_read_the_command(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)[1:]
    assert words[0] in ("start", "stop", "status", "env")
    assert local_services.parser().parse_args(words).command == words[0]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.slow
def test_the_words_for_a_laptop_work_as_they_are_typed(tmp_path: Path) -> None:
    """In a shell that knows nothing but a home, in a copy of the repository; nothing is left running."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    (block,) = [code for code in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "infra/local.sh start" in code]
    activate = "source .venv/bin/activate\n"
    assert block.startswith(activate)
    checkout = tmp_path / "segpipe"
    leave_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "demo", "data", "local", "tests")
    shutil.copytree(ROOT, checkout, ignore=leave_out)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",  # what activating does
        "PYTHON": sys.executable,
    }
    script = f"set -e\ntrap 'infra/local.sh stop' EXIT\n{block.removeprefix(activate)}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=checkout, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "prepared: s3://lake/scenes (train 40, val 8 images" in done.stdout and "succeeded" in done.stdout
    assert re.search(r"^ray +running", done.stdout, re.MULTILINE)
    assert (checkout / "local" / "mlflow.db").exists() and list((checkout / "local" / "s3").iterdir())
    mine = str(checkout).encode()
    processes = [pid for pid in local_services.process_times() if mine in _command_line(pid)]
    assert not processes


def test_links_of_the_cluster_page_lead_somewhere() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_every_alert_has_a_line_in_the_cluster_page() -> None:
    rules = yaml.safe_load((ROOT / "infra" / "dashboards" / "alerts.yaml").read_text())["groups"][0]["rules"]
    rows = re.findall(r"^\| (\w+) \|", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE)
    assert {rule["alert"] for rule in rules} <= set(rows)


def test_permissions_and_variables_of_the_cluster_page_are_those_in_use() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    compose = (ROOT / "infra" / "compose.yaml").read_text()
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_REGION", "RAY_AUTH_MODE", "MLFLOW_SERVER_ALLOWED_HOSTS"):
        assert name in text and name in compose
