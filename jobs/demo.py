"""The demo: the whole pipeline, then one question to a real endpoint, which is stopped again."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from jobs.pipeline import print_made, run_until
from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.config import Config
from rankstill.configfile import load_config
from rankstill.errors import RunError

START_SECONDS = 180.0
DOCUMENTS = 8


def main() -> None:
    """`python -m jobs.demo`."""
    parser = make_parser("jobs.demo", "Run the pipeline, ask the endpoint one question, print it all.")
    add_config_arguments(parser)
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    start = time.monotonic()
    made = run_until(config)
    question = pick_question(Path(made.places["data"]))
    answer = ask(config, question)
    print()
    print_made(made, time.monotonic() - start)
    print()
    print(f"POST /v1/rerank {{query: {question['query']!r}, documents: {len(question['documents'])} titles}}")
    rows = [["rank", "relevance", "judged", "document"]]
    for rank, result in enumerate(answer["results"], start=1):
        place = result["index"]
        title = question["documents"][place][:70]
        rows.append([str(rank), f"{result['relevance_score']:.3f}", f"{question['labels'][place]:.0f}", title])
    print(format_table(rows))
    print(f"answered by {answer['model']}; start the endpoint again with: make serve PORT=8000")


def pick_question(data: Path) -> dict[str, Any]:
    """A test query with items of every kind: its texts and labels, in the order of their ids."""
    import polars as pl

    pairs = pl.read_parquet(data / "pairs.parquet").filter(pl.col("split") == "test")
    varied = pairs.group_by("query").agg(kinds=pl.col("label").n_unique(), judged=pl.len())
    query = varied.sort("kinds", "judged", "query", descending=[True, True, False])["query"][0]
    chosen = pairs.filter(pl.col("query") == query).sort("item_id")
    # Equal shares of each label, so that the ranking can be seen to be right or wrong.
    chosen = chosen.with_columns(turn=pl.int_range(pl.len()).over("label")).sort("turn", "item_id").head(DOCUMENTS)
    chosen = chosen.sort("item_id")
    return {"query": query, "documents": chosen["text"].to_list(), "labels": chosen["label"].to_list()}


def ask(config: Config, question: dict[str, Any]) -> dict[str, Any]:
    """Start the endpoint on a free port, send the question, stop it.

    Raises:
        RunError: the endpoint didn't get ready, or refused.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serve.app", "--model", f"{config.name}@challenger"]
    overrides = [f"serve.port={port}", f"storage.root={json.dumps(str(config.storage.folder))}"]
    log_path = config.storage.folder / "serve.log"
    with log_path.open("wb") as log:
        server = subprocess.Popen([*command, *overrides], stdout=log, stderr=log)
        try:
            _wait_ready(server, f"http://127.0.0.1:{port}/readyz", log_path)
            body = {"query": question["query"], "documents": question["documents"]}
            response = httpx.post(f"http://127.0.0.1:{port}/v1/rerank", json=body, timeout=30)
        finally:
            server.terminate()
            server.wait()
    if response.status_code != 200:
        raise RunError(f"the endpoint answered {response.status_code} ({response.text[:200]}); see {str(log_path)!r}")
    return response.json()


def _wait_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RunError(f"the endpoint was not ready within {START_SECONDS:.0f} s; see {str(log)!r}")


if __name__ == "__main__":
    run_command(main)
