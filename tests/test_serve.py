"""The endpoint over HTTP, on the shared cluster."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cohere
import httpx
import numpy as np
import pytest
from ray import serve

from rankstill.artifacts import export_artifact, load_artifact
from rankstill.cross_encoder import CrossEncoder
from rankstill.encoders import random_model, random_tokenizer
from rankstill.errors import AddressError, ModelError
from rankstill.model_config import RandomModel
from rankstill.serving import APP
from serve.app import BuildArguments, build, require_free

QUERY = "Red Drill"
DOCUMENTS = ["blue lamp", "a red drill for steel", "red paint", "drill bit"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "student"
    folder.mkdir()
    tokenizer = random_tokenizer([*DOCUMENTS, QUERY], 300, 32)
    model = random_model(RandomModel(layers=1, width=32, heads=2), len(tokenizer), 32)
    # A random head barely tells documents apart; a larger one does.
    model.classifier.weight.data *= 100
    export_artifact(CrossEncoder(model.eval(), tokenizer, 32), folder, {}, ["title", "brand"])
    return folder


@pytest.fixture(scope="module")
def url(cluster, artifact):
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = BuildArguments(model=str(artifact), max_documents=50, max_body_bytes=20_000, replicas=2)
    serve.run(build(arguments), name=APP)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def rerank(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **body}, timeout=30)


def expected_scores(artifact: Path, documents: list[str]) -> np.ndarray:
    logits = load_artifact(artifact).scorer().score(["red drill"] * len(documents), documents)
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_ranking_is_the_students(url, artifact):
    answer = rerank(url).json()
    expected = expected_scores(artifact, DOCUMENTS)
    assert [r["index"] for r in answer["results"]] == np.argsort(-expected, kind="stable").tolist()
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)
        assert "document" not in result
    assert answer["model"] == "student"
    assert answer["usage"]["total_tokens"] > len(DOCUMENTS) * 4


def test_top_n_and_documents(url):
    everything = rerank(url).json()["results"]
    answer = rerank(url, top_n=2, return_documents=True).json()["results"]
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
        ({"documents": [3]}, 422, "documents"),
        ({"query": None}, 422, "query"),
    ],
)
def test_errors_name_what_is_wrong(url, body, status, says):
    response = rerank(url, **body)
    assert response.status_code == status
    assert says in response.json()["message"]


def test_a_body_that_is_no_json_is_refused(url):
    response = httpx.post(f"{url}/v1/rerank", content=b'{"quer', headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "Traceback" not in response.text


def test_v2_refuses_unknown_fields(url):
    body = {"model": "student", "query": QUERY, "documents": DOCUMENTS}
    assert httpx.post(f"{url}/v2/rerank", json=body, timeout=30).status_code == 200
    assert httpx.post(f"{url}/v2/rerank", json={**body, "colour": 1}, timeout=30).status_code == 422


def test_health_readiness_and_models(url):
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "model": "student"}
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["student"]


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
        answer = sdk.rerank(model="student", query=QUERY, documents=DOCUMENTS, top_n=2)
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
    ("body", "status"),
    [
        (rb'{"query": "a", "documents": [{"title": "x", "price": 1e999}], "return_documents": true}', 422),
        (rb'{"query": "a", "documents": [{"title": "x", "half": "\ud800"}], "return_documents": true}', 422),
        (rb'{"query": "a\ud800", "documents": ["\ud800", "x"]}', 200),
        (rb'{"query": "\u0000", "documents": ["x"]}', 400),
    ],
)
def test_legal_json_of_odd_content_is_never_a_server_error(url, body, status):
    response = httpx.post(f"{url}/v1/rerank", content=body, headers={"content-type": "application/json"}, timeout=30)
    assert response.status_code == status, response.text


def test_an_endless_query_costs_no_endless_time(artifact):
    """What lies beyond the reach of the student's tokens does not change its answer."""
    scorer = load_artifact(artifact).scorer()
    endless = "red drill " * 20_000
    pairs = scorer.tokenise([endless], ["lamp"])
    assert len(pairs.input_ids[0]) == scorer.max_length
    assert scorer.score([endless], ["lamp"]) == pytest.approx(scorer.score(["red drill " * 200], ["lamp"]))


def test_full_queues_are_answered_429_and_drain(url, artifact):
    serve.delete(APP)  # the last test of this file: the cluster has no CPU for a second endpoint
    arguments = BuildArguments(model=str(artifact), replicas=1, queue=1)
    serve.run(build(arguments), name=APP)
    documents = [f"drill {number}" for number in range(500)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: rerank(url, documents=documents), range(64)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    assert rerank(url).status_code == 200
