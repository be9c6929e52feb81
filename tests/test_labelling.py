"""Scoring blocks into a label store, on the shared cluster."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import tiny_cross_encoder
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from pyarrow import fs

from jobs.labels import as_dataset
from rankstill.configfile import load_config
from rankstill.cross_encoder import load_cross_encoder
from rankstill.data import with_pair_id
from rankstill.errors import ConfigError, RunError
from rankstill.label_care import compact, verify
from rankstill.label_files import StoredFile, stored_file
from rankstill.labels import open_store
from rankstill.progress import Reporter
from rankstill.scoring import Work, torch_scorer
from rankstill.steps.labelling import (
    LONGEST_TEXT,
    MOST_FAILURES,
    LabelActor,
    LabelJob,
    label_missing,
    open_labeller,
    score_rows,
    write_block,
)
from rankstill.steps.run import Run
from rankstill.teachers.kinds import LoadedTeacher, TeacherModel
from rankstill.trees import list_files, open_tree

WORDS = ["red", "oak", "chair", "blue", "steel", "lamp", "drill", "cordless", "18v", "garden", "hose"]


def made_pairs(count: int, seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    rows = [
        {
            "query": " ".join(generator.choice(WORDS, 2)),
            "item_id": f"i{number}",
            "text": f"{' '.join(generator.choice(WORDS, int(generator.integers(1, 9))))} {seed} {number}",
        }
        for number in range(count)
    ]
    return with_pair_id(pl.DataFrame(rows))


class Told(Reporter):
    """Keeps events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append({"name": name, **fields})


@pytest.fixture
def teacher(tmp_path) -> TeacherModel:
    tiny_cross_encoder(max_length=64).save(tmp_path / "teacher")
    return TeacherModel("cross", str(tmp_path / "teacher"), 64)


def make_run(tmp_path, *overrides: str) -> Run:
    tree = {"data": {"sources": [{"path": "unused.jsonl"}]}, "storage": {"root": str(tmp_path / "root")}}
    return Run(
        load_config(tree, ["labels.precision=float32", "labels.block=300", "labels.token_budget=128", *overrides]),
        Told(),
    )


def scores_of(model: TeacherModel, pairs: pl.DataFrame) -> np.ndarray:
    encoder = load_cross_encoder(model.folder, "test", 64)
    return torch_scorer(encoder, "cpu", "float32", 512).score(pairs["query"].to_list(), pairs["text"].to_list())


@pytest.mark.usefixtures("cluster")
def test_what_is_missing_is_scored_once_and_what_is_new_is_added(tmp_path, teacher):
    run, pairs = make_run(tmp_path), made_pairs(1000)
    labeller = open_labeller(run, teacher)
    told = label_missing(run, labeller, pairs.lazy(), "d00")
    assert told["pairs"] == 1000
    assert 0 < told["padding"] < 0.1
    assert told["useful_flops_per_second"] > 0
    labels = labeller.store.scan().collect()
    both = pairs.join(labels, on="pair_id", how="inner", maintain_order="left")
    assert both.height == 1000
    assert both["score"].to_numpy() == pytest.approx(scores_of(teacher, pairs), abs=1e-4)
    assert both["item_id"].equals(both["item_id_right"], check_names=False)
    assert label_missing(run, labeller, pairs.lazy(), "d00") == {"pairs": 0}
    more = pl.concat([pairs, made_pairs(10, seed=1)])
    assert label_missing(run, labeller, more.lazy(), "d01")["pairs"] == 10
    audit = verify(labeller.store)
    assert (audit.clean, audit.rows, audit.orphans) == (True, 1010, [])
    assert [commit.told["data"] for commit in labeller.store.commits()] == ["d00", "d01"]
    assert len(labeller.store.commits()[0].files) == 7, "each of two actors has half of 300 pairs at a time"


@pytest.mark.usefixtures("cluster")
def test_other_weights_another_template_or_length_are_another_store(tmp_path, teacher):
    run = make_run(tmp_path)
    first = open_labeller(run, teacher).store.fingerprint
    assert open_labeller(run, teacher).store.fingerprint == first
    other = tiny_cross_encoder(max_length=64)
    with torch.no_grad():
        weight = other.model.classifier.bias
        weight.copy_(torch.nextafter(weight, weight + 1))  # one bit
    other.save(tmp_path / "other")
    found = {
        first,
        open_labeller(run, TeacherModel("cross", str(tmp_path / "other"), 64)).store.fingerprint,
        open_labeller(run, TeacherModel("cross", teacher.folder, 63)).store.fingerprint,
        open_labeller(make_run(tmp_path, "data.fields=[title]"), teacher).store.fingerprint,
        open_labeller(make_run(tmp_path, "labels.precision=bfloat16"), teacher).store.fingerprint,
    }
    assert len(found) == 5


@pytest.mark.usefixtures("cluster")
def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, teacher):
    run, pairs = make_run(tmp_path), made_pairs(1000)
    store = open_labeller(run, teacher).store
    writing = store.writing()
    killed = writing.__enter__()
    blocks = [(killed.pending("", number), part) for number, part in enumerate(pairs.iter_slices(250))]
    for path, part in blocks:
        store.tree.create_dir(path.rpartition("/")[0])
        pq.write_table(part.to_arrow(), path, filesystem=store.tree)
    actor = LabelActor(job_of(teacher, store.tree))
    for path, _ in blocks[:3]:
        actor.work(path)
    store.tree.delete_file("lease.json")  # as though its holder had died
    assert label_missing(run, open_labeller(run, teacher), pairs.lazy(), "d00")["pairs"] == 250
    audit = verify(store)
    assert (audit.clean, audit.rows) == (True, 1000)
    labels = pairs.join(store.scan().collect(), on="pair_id", maintain_order="left")
    assert labels["score"].to_numpy() == pytest.approx(scores_of(teacher, pairs), abs=1e-4)


@pytest.mark.usefixtures("cluster")
def test_pairs_that_cannot_be_scored_are_told_and_the_others_are_labelled(tmp_path, teacher):
    run, pairs = make_run(tmp_path), made_pairs(400)
    poison = [
        {"query": "red", "item_id": "huge", "text": "x" * (LONGEST_TEXT + 1)},
        {"query": "red", "item_id": "blank", "text": "\u2003 \n"},
        {"query": "red", "item_id": "long but fine", "text": "oak " * 20_000},
    ]
    both = pl.concat([pairs, with_pair_id(pl.DataFrame(poison))])
    labeller = open_labeller(run, teacher)
    told = label_missing(run, labeller, both.lazy(), "d00")
    assert (told["pairs"], told["rejected"]) == (403, 2)
    store = labeller.store
    assert store.scan().collect().height == 401
    rejected = {
        row["item_id"]: row
        for file in store.files(rejects=True)
        for row in map(json.loads, store.tree.open_input_stream(file.path).read().splitlines())
    }
    assert rejected["huge"]["reason"] == "the text has 1,000,001 characters, more than 1,000,000"
    assert len(rejected["huge"]["text"]) == 500
    assert rejected["blank"]["reason"] == "the text is empty"
    (event,) = [one for one in run.reporter.events if one.get("state") == "rejected"]
    assert event["pairs"] == 2
    assert label_missing(run, labeller, both.lazy(), "d00") == {"pairs": 0}, "rejected ones aren't tried again"


@pytest.mark.usefixtures("cluster")
def test_scores_that_are_not_finite_stop_the_run_and_name_their_pairs(tmp_path):
    broken = tiny_cross_encoder(max_length=64)
    with torch.no_grad():
        broken.model.classifier.bias.fill_(float("nan"))
    broken.save(tmp_path / "broken")
    run = make_run(tmp_path)
    labeller = open_labeller(run, TeacherModel("cross", str(tmp_path / "broken"), 64))
    with pytest.raises(RunError, match=r"nan.*is not finite; use precision float32"):
        label_missing(run, labeller, made_pairs(20).lazy(), "d00")
    assert labeller.store.commits() == []


def job_of(model: TeacherModel, tree: Any) -> LabelJob:
    return LabelJob(model, "float32", "auto", 512, "cpu", 1, 0.0, tree)


def fake(score: Callable[[Sequence[str], Sequence[str]], np.ndarray]) -> LoadedTeacher:
    return LoadedTeacher(None, score, Work())


def test_a_pair_that_fails_does_not_take_its_neighbours_along():
    calls = []

    def score(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        if "poison" in texts:
            raise ValueError("no such token")
        return np.array([float(text) for text in texts])

    texts = [str(number) for number in range(100)]
    texts[37] = texts[90] = "poison"
    scored = score_rows(fake(score), ["q"] * 100, texts)
    assert scored.failures == dict.fromkeys((37, 90), "ValueError: no such token")
    assert sorted(scored.rows) == [row for row in range(100) if row not in (37, 90)]
    assert scored.scores.tolist() == [float(row) for row in scored.rows]
    assert len(calls) < 40, "halves are tried, not single pairs"


def test_a_teacher_that_fails_on_everything_is_not_poison():
    def score(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        raise ValueError("no weights")

    with pytest.raises(RunError, match=rf"fails on more than {MOST_FAILURES} pairs.*no weights.*jobs\.evaluate"):
        score_rows(fake(score), ["q"] * 100, ["t"] * 100)
    with pytest.raises(MemoryError):
        score_rows(fake(lambda q, t: (_ for _ in ()).throw(MemoryError())), ["q"], ["t"])


def test_every_score_that_is_not_finite_is_counted():
    def score(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        return np.array([float("inf") if text == "bad" else 0.0 for text in texts])

    with pytest.raises(RunError, match=r"inf of 'q' with 'bad'.*and 2 more; use labels\.precision=float32"):
        score_rows(fake(score), ["q"] * 9, ["bad"] * 5 + ["good"] * 4)


def test_a_block_of_rejects_only_writes_no_labels(tmp_path, teacher):
    tree = open_tree(str(tmp_path / "store"), "test", make=True)
    tree.create_dir("runs/r/pending")
    pq.write_table(
        pa.table({"pair_id": ["a"], "query": [" "], "item_id": ["i"], "text": ["oak"]}),
        "runs/r/pending/labels--000000.parquet",
        filesystem=tree,
    )
    told = LabelActor(job_of(teacher, tree)).work("runs/r/pending/labels--000000.parquet")
    (file,) = told["files"]
    assert re.fullmatch(r"runs/r/rejects--000000-[0-9a-f]{8}\.jsonl", file["path"])
    assert told["tokens"] == 0


def test_a_block_that_is_done_is_not_scored_again(tmp_path, teacher):
    tree = open_tree(str(tmp_path / "store"), "test", make=True)
    block = "runs/r/pending/labels--000000.parquet"
    write_block(tree, block, made_pairs(20))
    first = LabelActor(job_of(teacher, tree)).work(block)
    again = LabelActor(job_of(teacher, tree)).work(block)
    assert first["tokens"] > 0
    assert (again["tokens"], again["pairs"], again["files"]) == (0, 20, first["files"])
    tree.delete_file(block.replace(".parquet", ".json"))
    other = LabelActor(job_of(teacher, tree)).work(block)
    assert {file["path"] for file in other["files"]}.isdisjoint(file["path"] for file in first["files"])
    assert stored_file(tree, first["files"][0]["path"]) == StoredFile(**first["files"][0])


@pytest.fixture(scope="module")
def s3():
    """URL of a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"scheme=http&endpoint_override={quote(f'{host}:{port}', safe='')}&region=us-east-1"
    base, _ = fs.FileSystem.from_uri(f"s3://key:secret@labels/?{options}&allow_bucket_creation=true")
    base.create_dir("labels")
    yield f"s3://key:secret@labels/store?{options}"
    server.stop()


@pytest.mark.usefixtures("cluster")
def test_pairs_are_labelled_once_on_an_object_store(s3, tmp_path, teacher):
    run, pairs = make_run(tmp_path, f"storage.labels={s3}"), made_pairs(600)
    labeller = open_labeller(run, teacher)
    store = labeller.store
    assert store.where == f"s3://labels/store/{store.fingerprint}", "no secrets in what is shown"
    assert label_missing(run, labeller, pairs.lazy(), "d00")["pairs"] == 600
    assert label_missing(run, open_labeller(run, teacher), pairs.lazy(), "d00") == {"pairs": 0}
    assert label_missing(run, labeller, made_pairs(650).lazy(), "d01")["pairs"] == 50
    both = pairs.join(store.scan().collect(), on="pair_id", maintain_order="left")
    assert both["score"].to_numpy() == pytest.approx(scores_of(teacher, pairs), abs=1e-4)
    assert store.scan().filter(pl.col("item_id") == "i649").collect().height == 1
    dataset = as_dataset(store)
    assert dataset.count() == 650
    assert sorted(row["pair_id"] for row in dataset.select_columns(["pair_id"]).iter_rows()) == sorted(
        made_pairs(650)["pair_id"]
    )
    before = store.scan().collect().sort("pair_id")
    compact(store, keep_hours=0.0)
    audit = verify(store)
    assert (audit.clean, audit.rows, audit.files, audit.orphans) == (True, 650, 1, [])
    assert store.scan().collect().sort("pair_id").equals(before)
    assert list_files(store.tree, "", "") == ["teacher.json"], "no lease is left"
    assert not (tmp_path / "root" / "labels").exists()


def test_a_bucket_that_is_not_there_is_told_without_secrets(s3):
    with pytest.raises(ConfigError, match=r"storage\.labels: 's3://none/store/f00' can't be opened") as caught:
        open_store(s3.replace("@labels/", "@none/"), "f00", {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("victim", ["driver", "node"])
def test_every_pair_is_there_once_though_a_driver_or_a_node_is_killed(victim):
    """On a cluster of two nodes of its own, with a new node in place of the one that goes."""
    command = [sys.executable, "-m", "tests.benchmarks.label_kills", "--runs", "1", "--pairs", "6000"]
    environment = {**os.environ, "PYTHONPATH": "platform"}
    result = subprocess.run(
        [*command, "--victim", victim, "--after", "1"],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every pair is there once" in result.stdout
