"""The demo: the whole pipeline, then one question to a real endpoint, which is stopped again."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from jobs.pipeline import print_made, run_until
from rankstill.cli import add_config_arguments, format_table, make_parser, run_command
from rankstill.cluster import leave
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
    with endpoint(config, f"{config.name}@challenger") as (url, _):
        body = {"query": question["query"], "documents": question["documents"]}
        response = httpx.post(f"{url}/v1/rerank", json=body, timeout=30)
    if response.status_code != 200:
        raise RunError(f"the endpoint answered {response.status_code} ({response.text[:200]}); see serve.log")
    return response.json()


@contextmanager
def endpoint(config: Config, model: str) -> Iterator[tuple[str, str]]:
    """An endpoint on a free port, as the config says, until this is left: its URL, and that of Ray's dashboard.

    It has a cluster of its own; one that this process worked on would only take cores from it, and is left.

    Raises:
        RunError: it didn't get ready.
    """
    leave()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = config.storage.folder
    settings = {**config.serve.model_dump(mode="json"), "port": port}
    given = [f"serve.{name}={json.dumps(value)}" for name, value in settings.items()]
    command = [sys.executable, "-m", "serve.app", "--model", model, f"storage.root={json.dumps(str(root))}", *given]
    log_path = root / "serve.log"
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_ready(server, f"http://127.0.0.1:{port}/readyz", log_path)
            yield f"http://127.0.0.1:{port}", _dashboard(log_path)
        finally:
            server.terminate()
            server.wait()


def _dashboard(log: Path) -> str:
    """What the endpoint said of Ray's dashboard once it was ready."""
    for _ in range(100):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("{") and "RAY_DASHBOARD_ADDRESS" in line:
                return json.loads(line)["RAY_DASHBOARD_ADDRESS"]
        time.sleep(0.1)
    raise RunError(f"the endpoint told no dashboard; see {str(log)!r}")


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
