"""S3 servers on free loopback ports, started and ended by the tests: moto (in memory, any key is right) and SeaweedFS
(real authentication, files that survive a kill)."""

import contextlib
import os
import secrets
import shutil
import signal
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

from infra.local_services import WEED_PORTS, free_ports, seaweed, secret, socket_folder

START_SECONDS = 60.0


@dataclass
class S3Server:
    """A server that answers.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        access_key, secret_key: what it takes.
        process: the leader of its process group.
    """

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]
    command: list[str] = field(default_factory=list)

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """What a client needs in its environment, to speak to this server or through a proxy at `endpoint`."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
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
            aws_access_key_id=self.access_key,
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


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """A server for unit tests: half a second to start, and it takes any secret."""
    port = free_ports(["s3"])["s3"]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(lambda: (f"http://127.0.0.1:{port}", command, "any-key", "any-secret-will-do")) as server:
        yield server


@contextlib.contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """A server for integration tests: it refuses a wrong secret, and keeps its files over a kill."""
    folder = Path(tempfile.mkdtemp(prefix="weed-"))

    def prepare() -> tuple[str, list[str], str, str]:
        service = seaweed(folder, free_ports(WEED_PORTS))
        access_key, secret_key = (secret(folder / name) for name in ("s3_access_key", "s3_secret_key"))
        return service.answers.rstrip("/"), list(service.command), access_key, secret_key

    try:
        with _running(prepare) as server:
            yield server
    finally:
        shutil.rmtree(socket_folder(folder), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(prepare: Callable[[], tuple[str, list[str], str, str]]) -> Iterator[S3Server]:
    server: S3Server | None = None
    try:
        for attempt in range(3):  # another program may take a port between our look and the server's
            endpoint, command, access_key, secret_key = prepare()
            server = S3Server(endpoint, access_key, secret_key, _start(command), command)
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
