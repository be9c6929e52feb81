import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from rankstill import label_files as module
from rankstill.errors import ConfigError, DamagedError, DataError, RunError
from rankstill.label_care import compact, compare, verify
from rankstill.label_files import bucket_depth, labels_of, rejects_of, write_labels, write_rejects
from rankstill.labels import LabelRun, LabelStore, open_store
from rankstill.lease import Lease
from rankstill.schema import LABELS
from rankstill.text import digest
from rankstill.trees import below, read_json, shown, write_whole

AT = datetime(2026, 1, 1, tzinfo=UTC)


def table(*ids: str, score: float = 1.0, scores: list[float] | None = None):
    given = scores or [score] * len(ids)
    rows = [
        {"pair_id": i, "query": "q", "item_id": f"item {i}", "score": s, "logits": None, "labelled_at": AT}
        for i, s in zip(ids, given, strict=True)
    ]
    return pl.DataFrame(rows, schema_overrides={"logits": pl.List(pl.Float32)}).to_arrow().cast(LABELS)


def pairs(*ids: str) -> pl.LazyFrame:
    return pl.LazyFrame({"pair_id": list(ids), "text": [f"text {place}" for place in range(len(ids))]})


def lacking(store: LabelStore, given: pl.LazyFrame, aside) -> list[str]:
    return [one for _, frame in store.missing(given, aside) for one in frame["pair_id"]]


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "labels"), "f00", {"base": "random"})


@pytest.fixture
def small_buckets(monkeypatch):
    """A hundred pairs are two digits' worth of buckets."""
    monkeypatch.setattr(module, "BUCKET_ROWS", 5)


def ids(store: LabelStore) -> list[str]:
    return sorted(store.scan().collect()["pair_id"].to_list())


def many(count: int, salt: str = "") -> list[str]:
    return [digest(f"{salt}{number}") for number in range(count)]


def killed_run(store: LabelStore, *files: tuple[str, int, list[str]]) -> str:
    """A run that wrote files and was killed before it committed them."""
    run = "20260101T000000-killed00"
    writer = LabelRun(store, run, Lease(store.tree, "lease.json"))
    for bucket, number, held in files:
        write_labels(store.tree, writer.labels(bucket, number), table(*held))
    return run


def test_an_empty_store_misses_everything_and_scans_to_nothing(store, tmp_path):
    assert lacking(store, pairs("a", "b"), tmp_path / "aside") == ["a", "b"]
    empty = store.scan().collect()
    assert empty.height == 0
    assert empty.columns == LABELS.names


def test_what_is_appended_is_read_and_no_longer_missing(store, tmp_path):
    assert store.append(table("a", "b", "c", scores=[1.0, 1.0, -2.5])).rows == 3
    assert ids(store) == ["a", "b", "c"]
    assert store.scan().filter(pl.col("pair_id") == "c").collect()["score"].to_list() == [-2.5]
    assert lacking(store, pairs("d", "b", "c", "e"), tmp_path / "aside") == ["d", "e"]


def test_another_process_sees_what_was_appended(store, tmp_path):
    store.append(table("a"))
    store.append(table("b"))
    other = open_store(str(tmp_path / "labels"), "f00", {"something": "else"})
    assert ids(other) == ["a", "b"]
    assert other.teacher == {"base": "random"}
    assert ids(open_store(str(tmp_path / "labels" / "f00"), "")) == ["a", "b"]


def test_another_teacher_has_labels_of_its_own(store, tmp_path):
    store.append(table("a"))
    other = open_store(str(tmp_path / "labels"), "f11", {})
    assert ids(other) == []
    assert lacking(other, pairs("a"), tmp_path / "aside") == ["a"]


def test_labels_under_the_name_of_another_teacher_are_refused(store, tmp_path):
    store.append(table("a"))
    (tmp_path / "labels" / "f00").rename(tmp_path / "labels" / "f11")
    with pytest.raises(DataError, match=r"labels/f11' holds labels of another teacher, f00; move the folder away"):
        open_store(str(tmp_path / "labels"), "f11", {"base": "random"})


def test_the_same_pair_twice_is_missing_once(store, tmp_path):
    ((bucket, frame),) = store.missing(pairs("a", "b", "a", "a"), tmp_path / "aside")
    assert bucket == ""
    assert frame["pair_id"].to_list() == ["a", "b"]
    assert frame["text"].to_list() == ["text 0", "text 1"]


def test_rejected_pairs_are_not_missing(store, tmp_path):
    with store.writing() as run:
        rows = [{"pair_id": "b", "reason": "too long"}]
        run.commit([write_rejects(store.tree, run.rejects("", 0), rows)])
    assert lacking(store, pairs("a", "b", "c"), tmp_path / "aside") == ["a", "c"]
    assert ids(store) == []


@pytest.mark.parametrize(("rows", "depth"), [(0, 0), (1_000_000, 0), (1_000_001, 1), (16_000_000, 1), (16_000_001, 2)])
def test_buckets_hold_a_bounded_number_of_pairs(rows, depth):
    assert bucket_depth(rows) == depth


@pytest.mark.usefixtures("small_buckets")
def test_many_pairs_come_bucket_by_bucket_whatever_the_buckets_of_what_is_stored(store, tmp_path):
    every = many(100)
    store.append(table(*every[:40]))  # in one file for all buckets
    with store.writing() as run:  # and in files of finer buckets than those that are asked for
        files = [write_labels(store.tree, run.labels(one[:3], n), table(one)) for n, one in enumerate(every[40:50])]
        run.commit(files)
    found = list(store.missing(pairs(*every, *every), tmp_path / "aside"))
    assert len(found) > 16
    assert all(one.startswith(bucket) for bucket, frame in found for one in frame["pair_id"])
    assert sorted(one for _, frame in found for one in frame["pair_id"]) == sorted(every[50:])
    assert sorted(store.scan(every[0][:1]).collect()["pair_id"]) == sorted(
        one for one in every[:50] if one[0] == every[0][0]
    )


def test_what_a_killed_run_finished_is_committed_by_the_next(store, tmp_path):
    killed_run(store, ("", 0, ["a", "b"]), ("", 1, ["c"]))
    assert ids(store) == [], "not before a writer comes"
    pending = store.tree.base_path + "/runs/20260101T000000-killed00/pending"
    os.makedirs(pending)
    with store.writing():
        assert ids(store) == ["a", "b", "c"]
        assert lacking(store, pairs("a", "d"), tmp_path / "aside") == ["d"]
    assert not os.path.exists(pending)
    assert verify(store).clean


def test_half_written_files_and_late_ones_are_not_there(store, tmp_path):
    run = killed_run(store, ("", 0, ["a"]))
    folder = tmp_path / "labels" / "f00" / "runs" / run
    (folder / ".labels--000001.parquet.1234").write_bytes(b"PAR1")
    with store.writing():
        pass
    late = LabelRun(store, run, Lease(store.tree, "lease.json"))  # an actor that outlived its driver
    write_labels(store.tree, late.labels("", 2), table("a", "z"))
    assert ids(store) == ["a"]
    audit = verify(store)
    assert audit.clean
    assert audit.orphans == [late.labels("", 2)]


def test_what_an_actor_writes_after_its_run_was_found_empty_does_not_count(store, tmp_path):
    (tmp_path / "labels" / "f00" / "runs" / "20260101T000000-killed00" / "pending").mkdir(parents=True)
    store.append(table("a"))
    killed_run(store, ("", 0, ["a"]))
    with store.writing():
        assert ids(store) == ["a"]
    assert verify(store).clean


def test_two_attempts_at_one_block_count_once(store):
    writer = LabelRun(store, "20260101T000000-killed00", Lease(store.tree, "lease.json"))
    for attempt, held in (("1111", ["a", "b"]), ("2222", ["a", "b", "c"])):
        write_labels(store.tree, labels_of(writer.pending("", 0), attempt), table(*held))
    write_rejects(store.tree, rejects_of(writer.pending("", 0), "1111"), [{"pair_id": "c", "reason": "odd"}])
    write_labels(store.tree, labels_of(writer.pending("", 1), "3333"), table("d"))
    with store.writing():
        pass
    audit = verify(store)
    assert (audit.clean, audit.rows, audit.rejected) == (True, 3, 1)
    assert audit.orphans == [labels_of(writer.pending("", 0), "2222")]
    assert ids(store) == ["a", "b", "d"]


def test_a_commit_tells_its_files_rows_and_hashes(store, tmp_path):
    store.append(table("a", "b"), data="d00", pairs_per_second=12.5)
    (commit,) = (tmp_path / "labels" / "f00" / "commits").iterdir()
    told = json.loads(commit.read_text())
    assert told["rows"] == 2
    assert told["fingerprint"] == "f00"
    assert told["data"] == "d00"
    (file,) = told["files"]
    written = tmp_path / "labels" / "f00" / file["path"]
    assert file["bytes"] == written.stat().st_size
    import hashlib

    assert file["sha256"] == hashlib.sha256(written.read_bytes()).hexdigest()


def test_writers_take_turns(store):
    order, told = [], []
    with store.writing():
        other = threading.Thread(target=lambda: _write(store, order, told))
        other.start()
        time.sleep(1.2)
        order.append("first")
    other.join(timeout=20)
    assert order == ["first", "second"]
    assert told == [f"process {os.getpid()} of {os.uname().nodename}"]


def _write(store: LabelStore, order: list[str], told: list[str]) -> None:
    with store.writing(told.append):
        order.append("second")


def test_the_lease_of_a_dead_process_is_taken_at_once(store):
    code = (
        "import os, sys; from rankstill.labels import open_store;"
        f"store = open_store({store.where!r}, '');"
        "writer = store.writing(); writer.__enter__(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (store.tree.get_file_info("lease.json")).is_file
    start = time.monotonic()
    with store.writing():
        pass
    assert time.monotonic() - start < 5, "a process of this host that has ended isn't waited for"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_a_damaged_lease_is_nobodys(store, content):
    write_whole(store.tree, "lease.json", content)
    with store.writing():
        assert read_json(store.tree, "lease.json")["pid"] == os.getpid()


def test_a_writer_whose_lease_was_taken_commits_nothing(store):
    with store.writing() as run:
        lease = read_json(store.tree, "lease.json")
        write_whole(store.tree, "lease.json", json.dumps({**lease, "holder": "another"}).encode())
        files = [write_labels(store.tree, run.labels("", 0), table("a"))]
        with pytest.raises(RunError, match="taken by another"):
            run.commit(files)
    assert store.commits() == []


def test_verify_finds_what_is_wrong(store, tmp_path):
    folder = tmp_path / "labels" / "f00"
    first, second, third = (store.append(table(*held)) for held in (("a", "b"), ("b", "c"), ("d",)))
    with store.writing() as run:
        odd = write_labels(store.tree, run.labels("a", 0), table("e", score=float("nan")))
        run.commit([odd])
    doubled = verify(store)
    assert set(doubled.problems) == {
        "pair stored more than once",
        "scores that aren't finite",
        "pairs of another bucket",
    }
    assert doubled.problems["pair stored more than once"] == ["b"]
    assert doubled.rows == 6
    (folder / first.files[0].path).unlink()
    path = folder / second.files[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    damaged = verify(store)
    assert damaged.problems["missing file"] == [first.files[0].path]
    assert damaged.problems["changed file"] == [second.files[0].path]
    assert not damaged.clean
    assert third.files[0].path not in str(damaged.problems)


def test_compacting_merges_files_and_keeps_every_label(store, tmp_path):
    every = many(60)
    for start in range(0, 60, 10):
        store.append(table(*every[start : start + 10], score=float(start)), data=f"d{start}")
    with store.writing() as run:
        run.commit([write_rejects(store.tree, run.rejects("", 0), [{"pair_id": "x", "reason": "why"}])])
    before = store.scan().collect().sort("pair_id")
    lazily = store.scan()
    told = compact(store)
    assert told == {"rows": 60, "files before": 7, "damaged": 0, "files": 2, "removed": 0}
    assert store.scan().collect().sort("pair_id").equals(before)
    assert lazily.collect().height == 60, "who began to read before still can"
    assert lacking(store, pairs("x", "y"), tmp_path / "aside") == ["y"]
    audit = verify(store)
    assert audit.clean
    assert (audit.files, audit.orphans) == (2, [])
    (commit,) = store.commits()
    assert [one.get("data") for one in commit.told["history"]] == [f"d{start}" for start in range(0, 60, 10)] + [None]
    held = store.scan().collect()["pair_id"].to_list()
    assert held == sorted(held)


def test_what_was_replaced_long_enough_ago_is_removed(store, tmp_path):
    for one in ("a", "b"):
        store.append(table(one))
    run = store.commits()[0].run
    assert compact(store, keep_hours=0.0)["removed"] == 2
    assert not (tmp_path / "labels" / "f00" / "runs" / run).exists()
    assert ids(store) == ["a", "b"]
    again = compact(store, keep_hours=0.0)
    assert again == {"rows": 2, "files before": 1, "damaged": 0, "files": 1, "removed": 0}
    store.append(table("c"))
    compact(store, keep_hours=0.0)
    assert ids(store) == ["a", "b", "c"]
    assert [len(entry["run"]) for entry in store.commits()[0].told["history"]] == [31] * 4


def test_a_damaged_store_is_told_and_compacting_keeps_what_is_sound(store, tmp_path):
    folder = tmp_path / "labels" / "f00"
    first, second, _ = (store.append(table(one)) for one in ("a", "b", "c"))
    (folder / first.files[0].path).unlink()
    (folder / second.files[0].path).write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=r"f00' is damaged: a file of labels can't be read .* `jobs\.labels verify`"):
        lacking(store, pairs("a"), tmp_path / "aside")
    with pytest.raises(DamagedError):
        compare(store, store)
    told = compact(store, keep_hours=0.0)
    assert (told["damaged"], told["rows"]) == (2, 1)
    assert lacking(store, pairs("a", "b", "c"), tmp_path / "aside") == ["a", "b"]
    assert verify(store).clean


@pytest.mark.parametrize("broken", ["{", '{"run": 5}', "[]"])
def test_a_broken_commit_is_told_and_its_files_are_recovered(store, tmp_path, broken):
    store.append(table("a"))
    (commit,) = (tmp_path / "labels" / "f00" / "commits").iterdir()
    commit.write_text(broken)
    assert verify(store).problems == {"unreadable commit": [f"commits/{commit.name}"]}
    with pytest.raises(DamagedError, match=rf"is damaged: commits/{commit.name} can't be read"):
        store.scan()
    with store.writing():
        assert ids(store) == ["a"]
    assert verify(store).clean


def test_a_broken_description_is_told(store, tmp_path):
    store.append(table("a"))
    (tmp_path / "labels" / "f00" / "teacher.json").write_text("{")
    assert verify(store).problems == {"unreadable file": ["teacher.json"]}
    with pytest.raises(DamagedError, match=r"teacher.json can't be read; remove it, and jobs.label writes it again"):
        _ = store.teacher


def test_labels_whose_commit_is_gone_are_recovered_by_compacting(store, tmp_path):
    store.append(table("a"))
    store.append(table("b"))
    next((tmp_path / "labels" / "f00" / "commits").iterdir()).unlink()
    assert len(verify(store).orphans) == 1
    assert compact(store)["rows"] == 2
    assert ids(store) == ["a", "b"]


@pytest.mark.usefixtures("small_buckets")
def test_compacting_much_gives_one_file_a_bucket(store):
    every = many(100)
    for start in range(0, 100, 20):
        store.append(table(*every[start : start + 20]))
    compact(store)
    assert ids(store) == sorted(every)
    assert all(len(file.bucket) == 2 for file in store.files())
    assert verify(store).clean


def test_two_teachers_are_compared_on_what_both_labelled(store, tmp_path):
    other = open_store(str(tmp_path / "labels"), "f11", {})
    every = many(50)
    generator = np.random.default_rng(0)
    ours = generator.normal(size=40)
    theirs = 3 * ours + 7
    theirs[7] = -9.0
    store.append(table(*every[:40], scores=ours.tolist()))
    other.append(table(*every[:40], *every[45:], scores=[*theirs.tolist(), *[0.0] * 5]))
    report = compare(store, other)
    assert (report["left_pairs"], report["right_pairs"], report["compared"]) == (40, 45, 40)
    from scipy.stats import kendalltau, pearsonr, spearmanr

    as_stored = ours.astype(np.float32), theirs.astype(np.float32)
    assert report["spearman"] == pytest.approx(spearmanr(*as_stored).statistic, abs=1e-6)
    assert report["pearson"] == pytest.approx(pearsonr(*as_stored).statistic, abs=1e-5)
    expected = (kendalltau(*as_stored).statistic + 1) / 2
    assert report["order_agreement"]["value"] == pytest.approx(expected, abs=1e-6)
    assert report["moved_most"][0]["pair_id"] == every[7]


def test_teachers_with_nothing_in_common_compare_to_nothing(store, tmp_path):
    other = open_store(str(tmp_path / "labels"), "f11", {})
    store.append(table("a"))
    assert compare(store, other)["compared"] == 0


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="no label store"):
        open_store(str(tmp_path / "none"), "")
    with pytest.raises(DataError, match=r"no label store.*teacher\.json"):
        open_store(str(tmp_path), "")
    with pytest.raises(ConfigError, match="can't be opened"):
        open_store("gopher://labels", "f00", {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"STORE: '.*file' is no folder"):
        open_store(str(tmp_path / "file"), field="STORE")
    with pytest.raises(ConfigError, match=r"STORE: 's3://' (is no folder|can't be opened)"):
        open_store("s3://", field="STORE")


def test_locations():
    assert below("/a/b/", "c") == "/a/b/c"
    assert below("s3://k:s@b/p/?x=1&y=2", "c") == "s3://k:s@b/p/c?x=1&y=2"
    assert shown("s3://k:s@b/p/?x=1") == "s3://b/p"
    assert shown("/a/b?/") == "/a/b?"
