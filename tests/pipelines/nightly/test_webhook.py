"""The webhook: what is sent, what is tried again, what is kept out of the log."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pipelines.nightly import webhook


class Receiver:
    """A server on this machine that answers with the given codes, one after another."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.messages: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.messages.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(receiver.codes.pop(0))
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/secret-token"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.0)
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


def test_a_message_arrives_as_json(receiver: Receiver) -> None:
    receiver.codes = [204]
    assert webhook.post(receiver.url, {"status": "finished", "num_images": 3})
    assert receiver.messages == [("application/json", {"status": "finished", "num_images": 3})]


def test_a_server_that_stumbles_is_asked_again(receiver: Receiver) -> None:
    receiver.codes = [503, 500, 200]
    assert webhook.post(receiver.url, {})
    assert len(receiver.messages) == 3


def test_a_refusal_is_final_and_the_address_stays_out_of_the_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.codes = [403]
    with caplog.at_level(logging.WARNING):
        assert not webhook.post(receiver.url, {})
    assert len(receiver.messages) == 1
    assert "HTTP 403" in caplog.text and "127.0.0.1" in caplog.text and "secret-token" not in caplog.text


def test_nobody_there_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.0)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    url = f"http://127.0.0.1:{server.server_port}/secret-token"
    server.server_close()  # the port is free again
    assert not webhook.post(url, {})
    assert "not reached" in caplog.text and "secret-token" not in caplog.text


@pytest.mark.parametrize("url", ["hooks.example.com/x", "file:///etc/passwd", "https://", "ftp://host/x"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="--webhook is no http"):
        webhook.check_url(url)
