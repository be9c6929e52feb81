"""How many events of shoppers an endpoint stores in a second, and how soon it says so.

    python -m tests.benchmarks.events --model ARTIFACT [--rate 1000] [--seconds 60] [--batch 20]

Events leave at a steady rate, `batch` of them in each request of `/v1/feedback`, whether or not those before were
answered. Afterwards the table of events is read: each acknowledged one has to be there once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from deltalake import DeltaTable

from rankstill.event_log import EventLog
from tests.benchmarks.serving import free_port, load_command, server


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="artifact folder")
    parser.add_argument("--rate", type=float, default=1000.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=20, help="events a request")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="events-") as name:
        folder, port = Path(name), free_port()
        requests = round(arguments.rate * arguments.seconds / arguments.batch)
        bodies = folder / "bodies.jsonl"
        with bodies.open("w") as stream:
            for number in range(requests):
                events = [
                    {"event_id": f"{number}-{place}", "event": "click", "request_id": f"r{number}", "position": place}
                    for place in range(arguments.batch)
                ]
                stream.write(json.dumps({"events": events}) + "\n")
        command = [sys.executable, "-m", "serve.app", "--model", str(arguments.model), f"serve.port={port}"]
        answers = folder / "answers.jsonl"
        with server([*command, "serve.replicas=1", f"storage.root={folder / 'root'}"], port, "/readyz"):
            rate = arguments.rate / arguments.batch
            sending = load_command(port, "/v1/feedback", bodies, rate, arguments.seconds)
            done = subprocess.run([*sending, "--answers", str(answers)], capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        answered = [json.loads(line) for line in answers.read_text().splitlines()]
        acknowledged = sum(json.loads(one["text"])["stored"] for one in answered if one["status"] == "200")
        stored = stored_ids(folder / "root" / "feedback")
        print(f"{told['sent'] * arguments.batch:,} events in {told['sent']:,} requests: {told['statuses']}")
        print(f"p50 {told['p50_ms']} ms, p99 {told['p99_ms']} ms, worst {told['worst_ms']} ms")
        print(f"{acknowledged:,} acknowledged, {len(stored):,} stored, {len(set(stored)):,} different")


def stored_ids(log: str | os.PathLike[str]) -> list[str]:
    """Of every row of the table of events, as it is; `EventLog` would tell each once.

    It is opened before, which takes into the table what a writer that died had on disk.
    """
    EventLog(str(log))
    return DeltaTable(f"{log}/events").to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist()


if __name__ == "__main__":
    main()
