"""The plain way to serve a cross-encoder, to compare with: FastAPI around `CrossEncoder.predict`.

python -m tests.benchmarks.plain_server --model FOLDER --port 8100
"""

import argparse
import threading

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder


class Rerank(BaseModel):
    """A query and its candidates."""

    query: str
    documents: list[str]


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-length", type=int, default=64)
    arguments = parser.parse_args()
    model = CrossEncoder(arguments.model, max_length=arguments.max_length, device="cpu")
    turn = threading.Lock()
    api = FastAPI()

    @api.post("/v1/rerank")
    def rerank(body: Rerank) -> dict[str, object]:
        pairs = [(body.query, document) for document in body.documents]
        with turn, torch.inference_mode():
            scores = model.predict(pairs, batch_size=64, show_progress_bar=False)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return {"results": [{"index": place, "relevance_score": float(scores[place])} for place in order]}

    @api.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    uvicorn.run(api, host="127.0.0.1", port=arguments.port, log_level="error")


if __name__ == "__main__":
    main()
