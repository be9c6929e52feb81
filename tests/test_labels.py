import json
from datetime import UTC, datetime

import polars as pl
import pyarrow.parquet as pq
import pytest

from rankstill.labels import LabelStore
from rankstill.schema import LABELS

AT = datetime(2026, 1, 1, tzinfo=UTC)


def labels(*ids: str, score: float = 1.0) -> list[dict]:
    given = {"query": "q", "item_id": "i", "score": score, "logits": None, "labelled_at": AT}
    return [{"pair_id": i, **given} for i in ids]


def written(folder, *parts: list[dict]):
    """A finished write: one Parquet file a part."""
    folder.mkdir()
    for number, rows in enumerate(parts):
        pq.write_table(LABELS.empty_table() if not rows else _table(rows), folder / f"{number}.parquet")
    return folder


def _table(rows: list[dict]):
    return pl.DataFrame(rows).to_arrow().cast(LABELS)


def pairs(*ids: str) -> pl.DataFrame:
    return pl.DataFrame({"pair_id": list(ids), "text": [f"text {place}" for place in range(len(ids))]})


@pytest.fixture
def store(tmp_path):
    return LabelStore(tmp_path / "labels", "f00", {"base": "random"})


def ids(store: LabelStore) -> list[str]:
    return sorted(store.scan().collect()["pair_id"].to_list())


def test_an_empty_store_misses_everything_and_scans_to_nothing(store):
    assert store.missing(pairs("a", "b"))["pair_id"].to_list() == ["a", "b"]
    empty = store.scan().collect()
    assert empty.height == 0
    assert empty.columns == LABELS.names


def test_what_is_appended_is_read_and_no_longer_missing(store, tmp_path):
    source = written(tmp_path / "write", labels("a", "b"), labels("c", score=-2.5))
    assert store.append(source) == 3
    assert ids(store) == ["a", "b", "c"]
    assert store.scan().filter(pl.col("pair_id") == "c").collect()["score"].to_list() == [-2.5]
    assert store.missing(pairs("d", "b", "c", "e"))["pair_id"].to_list() == ["d", "e"]
    assert list(source.glob("*.parquet")) == [], "files are moved, not copied"


def test_commits_add_up(store, tmp_path):
    store.append(written(tmp_path / "one", labels("a")))
    store.append(written(tmp_path / "two", labels("b")))
    assert ids(store) == ["a", "b"]
    assert len(store.files()) == 2


def test_another_process_sees_what_was_appended(store, tmp_path):
    store.append(written(tmp_path / "write", labels("a")))
    other = LabelStore(tmp_path / "labels", "f00", {})
    assert ids(other) == ["a"]
    assert json.loads((other.folder / "teacher.json").read_text()) == {"base": "random"}


def test_another_teacher_has_labels_of_its_own(store, tmp_path):
    store.append(written(tmp_path / "write", labels("a")))
    other = LabelStore(tmp_path / "labels", "f11", {})
    assert ids(other) == []
    assert other.missing(pairs("a")).height == 1


def test_the_same_pair_twice_is_missing_once(store):
    missing = store.missing(pairs("a", "b", "a", "a"))
    assert missing["pair_id"].to_list() == ["a", "b"]
    assert missing["text"].to_list() == ["text 0", "text 1"]


def test_a_file_that_no_commit_names_is_not_there(store, tmp_path):
    store.append(written(tmp_path / "write", labels("a")))
    pq.write_table(_table(labels("x")), store.folder / "part-20260101T000000-killed-00000.parquet")
    (store.folder / "part-half.parquet").write_bytes(b"PAR1")
    assert ids(store) == ["a"]
    assert store.missing(pairs("x")).height == 1


def test_a_commit_that_was_not_finished_is_not_there(store, tmp_path):
    store.append(written(tmp_path / "write", labels("a")))
    (store.folder / ".commit-20260101T000000-dead.json.1234").write_text('{"files": {"part-x.parquet"')
    assert ids(store) == ["a"]


def test_nothing_appended_is_fine(store, tmp_path):
    assert store.append(written(tmp_path / "none")) == 0
    assert store.append(written(tmp_path / "empty", [])) == 0
    assert ids(store) == []


def test_a_commit_tells_its_files_and_rows(store, tmp_path):
    store.append(written(tmp_path / "write", labels("a", "b"), labels("c")))
    (commit,) = store.folder.glob("commit-*.json")
    told = json.loads(commit.read_text())
    assert told["rows"] == 3
    assert sorted(told["files"].values()) == [1, 2]
    assert {store.folder / name for name in told["files"]} == set(store.files())
