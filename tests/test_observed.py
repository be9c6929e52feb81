import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from serve.observed import Observed

DASHBOARD = Path(__file__).parent.parent / "serve" / "grafana.json"


def test_the_text_is_what_prometheus_reads():
    observed = Observed()
    observed.request("/v1/rerank", 200, 0.03)
    observed.request("/v1/rerank", 429, 0.001)
    families = {one.name: one for one in text_string_to_metric_families(observed.text().decode())}
    requests = {
        sample.labels["status"]: sample.value
        for sample in families["rankstill_requests"].samples
        if "status" in sample.labels and sample.name.endswith("_total")
    }
    assert requests == {"200": 1.0, "429": 1.0}
    buckets = {
        s.labels["le"]: s.value for s in families["rankstill_latency_seconds"].samples if s.name.endswith("_bucket")
    }
    assert (buckets["0.002"], buckets["0.02"], buckets["0.05"]) == (1.0, 1.0, 2.0)


def test_two_endpoints_count_for_themselves():
    one, other = Observed(), Observed()
    one.request("/", 200, 0.1)
    assert b'rankstill_requests_total{route="/",status="200"} 1.0' in one.text()
    assert b"rankstill_requests_total{" not in other.text()


def test_the_dashboard_asks_for_nothing_that_is_not_told():
    observed = Observed()
    told = set()
    for family in text_string_to_metric_families(observed.text().decode()):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[family.type]
        told |= {family.name + suffix for suffix in suffixes}
    asked = set(re.findall(r"rankstill_\w+", DASHBOARD.read_text()))
    assert asked
    assert asked <= told
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
