import json
import subprocess
import sys
from pathlib import Path

import pytest
from builders import write_jsonl

ROOT = Path(__file__).parent.parent


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.feedback", *map(str, words)]
    path = {"PYTHONPATH": str(ROOT / "platform"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def search_log(tmp_path_factory) -> Path:
    rows = []
    for number in range(300):
        shown = ["a", "b", "c"] if number % 2 else ["b", "a", "c"]
        for position, item in enumerate(shown):
            clicked = (number * 7 + position * 5) % (6 + 6 * position) == 0
            rows.append({"session": f"s{number}", "query": "drill", "position": position, "item_id": item,
                         "clicked": int(clicked), "user": "ann" if number < 10 else "bob"})  # fmt: skip
    return write_jsonl(tmp_path_factory.mktemp("logs") / "log.jsonl", rows)


def test_a_log_is_imported_once_shown_and_forgotten(search_log, tmp_path):
    where, columns = tmp_path / "feedback", "--columns={request_id: session}"
    first = run("import", where, "--log", search_log, columns)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("900 rows: 300 impressions, ")
    again = run("import", where, "--log", search_log, columns)
    assert "0 impressions, 0 events new" in again.stdout
    told = json.loads(run("show", where, "--json", "--positions", 2).stdout)
    assert (told["impressions"], told["items"]) == (300, 900)
    assert told["versions"] == [{"model_version": "imported", "impressions": 300, "clicks": told["events"]["click"]}]
    assert told["examination"]["method"] == "position-based model"
    assert told["examination"]["value"][0] == 1.0
    table = run("show", where, "--positions", 2).stdout
    assert "how likely a position is to be looked at, by position-based model" in table
    gone = run("forget", where, "--user", "ann")
    assert gone.stdout.startswith("10 impressions and ")
    assert json.loads(run("show", where, "--json").stdout)["impressions"] == 290
    assert "290 impressions" in run("prune", where, "--before", "2100-01-01").stdout
    assert run("compact", where).returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "nowhere"), "LOG is 'nowhere', where nothing was kept"),
        (("import", "new"), "import takes --log, or --ubi-queries and --ubi-events"),
        (("import", "new", "--log", "missing.jsonl"), "no such file or folder 'missing.jsonl'"),
        (("import", "new", "--log", "x", "--columns", "[1"), "--columns is '[1'; give a map"),
        (("import", "new", "--log", "x", "--columns", "{a: b}"), "--columns: 'a' is none of request_id"),
        (("import", "new", "--log", "x", "--columns", "{1: b, a: c}"), "--columns: '1' is none of request_id"),
        (("import", "new", "--log", "x", "--columns", "{request_id: [a]}"), "--columns is '{request_id: [a]}'; give"),
        (("import", "new", "--log", "x", "--columns", "{request_id: }"), "--columns is '{request_id: }'; give a map"),
        (("import", "new", "--log", "x", "--ubi-queries", "y"), "takes --log, or --ubi-queries and --ubi-events"),
        (("import", "new", "--log", "x", "--max-bad-rows", "nan"), "--max-bad-rows is nan; give a share, from 0 to 1"),
        (("show", "nowhere", "--positions", "0"), "--positions is 0; give 1 or more"),
        (("forget", "nowhere"), "forget takes --user"),
        (("prune", "nowhere"), "prune takes --before"),
        (("prune", "nowhere", "--before", "soon"), "--before is 'soon'; give a day"),
    ],
)
def test_what_can_not_be_done_is_told_in_a_line(words, says):
    done = run(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (ROOT / "new").exists()
