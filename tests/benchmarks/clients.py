"""The clients that search teams have already, against a running endpoint.

    pip install cohere langchain-cohere llama-index-postprocessor-cohere-rerank llama-index-postprocessor-tei-rerank
    python -m tests.benchmarks.clients --url http://127.0.0.1:8000

Each ranks the same documents; told is whether order and scores are those of a plain request. Those that aren't
installed are left out.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

QUERY = "cordless drill"
DOCUMENTS = ["18v cordless drill with battery", "oak chair", "drill bit set", "garden hose", "cordless lamp"]
TOLERANCE = 1e-6

Found = list[tuple[int, float]]
"""Places of documents with their scores, best first."""


def post(url: str, body: dict[str, Any]) -> Any:
    """The answer to a plain request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def cohere_v1(url: str, model: str) -> Found:
    """Cohere's SDK, first protocol."""
    import cohere

    answer = cohere.Client(api_key="unused", base_url=url).rerank(model=model, query=QUERY, documents=DOCUMENTS)
    return [(one.index, one.relevance_score) for one in answer.results]


def cohere_v2(url: str, model: str) -> Found:
    """Cohere's SDK, second protocol."""
    import cohere

    answer = cohere.ClientV2(api_key="unused", base_url=url).rerank(model=model, query=QUERY, documents=DOCUMENTS)
    return [(one.index, one.relevance_score) for one in answer.results]


def langchain_cohere(url: str, model: str) -> Found:
    """LangChain's compressor."""
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    reranker = CohereRerank(cohere_api_key="unused", base_url=url, model=model, top_n=None)
    documents = [Document(page_content=text) for text in DOCUMENTS]
    found = reranker.compress_documents(documents, QUERY)
    return [(DOCUMENTS.index(one.page_content), one.metadata["relevance_score"]) for one in found]


def llama_index_cohere(url: str, model: str) -> Found:
    """llama-index's postprocessor for Cohere."""
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return of_nodes(CohereRerank(api_key="unused", base_url=url, model=model, top_n=len(DOCUMENTS)))


def llama_index_tei(url: str, model: str) -> Found:
    """llama-index's postprocessor for text-embeddings-inference."""
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return of_nodes(TextEmbeddingInference(base_url=url, top_n=len(DOCUMENTS)))


def of_nodes(postprocessor: Any) -> Found:
    """What a postprocessor of llama-index makes of the documents."""
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    found = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    return [(DOCUMENTS.index(one.node.get_content()), one.score) for one in found]


def opensearch(url: str, model: str) -> Found:
    """The body that OpenSearch's connector for Cohere's reranker sends."""
    body = {"documents": DOCUMENTS, "query": QUERY, "model": model, "top_n": len(DOCUMENTS), "return_documents": True}
    return [(one["index"], one["relevance_score"]) for one in post(f"{url}/v1/rerank", body)["results"]]


def elasticsearch(url: str, model: str) -> Found:
    """The body that Elasticsearch's inference service for text-embeddings-inference sends."""
    body = {"texts": DOCUMENTS, "query": QUERY, "return_text": True}
    return [(one["index"], one["score"]) for one in post(f"{url}/rerank", body)]


CLIENTS: Sequence[Callable[[str, str], Found]] = (
    cohere_v1,
    cohere_v2,
    langchain_cohere,
    llama_index_cohere,
    llama_index_tei,
    opensearch,
    elasticsearch,
)


def main() -> None:
    """Ask with all, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    url = parser.parse_args().url.rstrip("/")
    plain = post(f"{url}/v1/rerank", {"query": QUERY, "documents": DOCUMENTS})
    expected = [(one["index"], one["relevance_score"]) for one in plain["results"]]
    right = True
    for client in CLIENTS:
        try:
            found = client(url, plain["model"])
        except ImportError as error:
            print(f"{client.__name__:20} left out: {error}")
            continue
        same = [place for place, _ in found] == [place for place, _ in expected]
        gap = max(abs(one - other) for (_, one), (_, other) in zip(found, expected, strict=True))
        right &= same and gap <= TOLERANCE
        print(f"{client.__name__:20} order {'the same' if same else found}, scores within {gap:.1g}")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
