"""The hub on loopback itself: who hangs up before the end is not an error, whatever else goes wrong is."""

import socket
import struct
from threading import Event
from urllib.request import urlopen

import pytest

from tests.support import fake_hub

REPO, COMMIT = "someone/large", "c" * 40


@pytest.fixture
def handled(monkeypatch):
    """Set once the server has dealt with a handler that raised."""
    event, handle_error = Event(), fake_hub._Server.handle_error

    def told(*args):
        handle_error(*args)
        event.set()

    monkeypatch.setattr(fake_hub._Server, "handle_error", told)
    return event


def test_who_hangs_up_before_the_end_is_no_error(handled, tmp_path, monkeypatch, capsys):
    content = bytes(64 << 20)  # more than the sockets hold, so that the server is still writing
    with fake_hub.served({REPO: {COMMIT: {"model.safetensors": content}}}, tmp_path, monkeypatch) as hub:
        client = socket.create_connection(("127.0.0.1", hub._server.server_port))
        client.sendall(f"GET /{REPO}/resolve/main/model.safetensors HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
        client.close()
        assert handled.wait()
    assert capsys.readouterr().err == ""


def test_what_the_hub_does_wrong_is_printed(handled, tmp_path, monkeypatch, capsys):
    with fake_hub.served({REPO: {COMMIT: {"a": "no bytes"}}}, tmp_path, monkeypatch) as hub:
        with pytest.raises(OSError, match="closed connection"):
            urlopen(f"{hub.url}/{REPO}/resolve/main/a")
        assert handled.wait()
    assert "TypeError" in capsys.readouterr().err
