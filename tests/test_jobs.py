"""The pipeline on the shared cluster, and the commands as a shell runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from builders import judgement, tiny_cross_encoder, write_jsonl
from transformers import RobertaConfig, RobertaForSequenceClassification

from jobs.cost import labelling_cost, neighbours
from jobs.evaluate import evaluate_files
from jobs.index import index_items
from jobs.pipeline import run_until
from rankstill.artifacts import load_artifact
from rankstill.bi_encoder import load_bi_encoder
from rankstill.calibration import calibrate
from rankstill.compression import quantise_artifact
from rankstill.config import Config
from rankstill.configfile import dump_config, load_config
from rankstill.cross_encoder import load_cross_encoder
from rankstill.errors import DataError, GateError, InputError, ModelError
from rankstill.exporting import export_artifact
from rankstill.item_index import ItemEncoder, KnownItemScorer, open_index
from rankstill.label_care import compare, verify
from rankstill.labels import open_store
from rankstill.lineage import lineage
from rankstill.metrics import per_query
from rankstill.model_config import Schedule, Student
from rankstill.progress import Reporter
from rankstill.rankers import load_ranker
from rankstill.registry import Registry
from rankstill.scoring import torch_scorer
from rankstill.steps.prepare import Prepared
from rankstill.steps.run import Run
from rankstill.steps.train import check_models
from rankstill.students import make_student
from rankstill.students.cross import add_grades

ROOT = Path(__file__).parent.parent
TINY = ROOT / "jobs" / "configs" / "tiny.yaml"


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "platform", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def events_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("tiny")
    settings = ["train.epochs=1", "teacher.train.epochs=1", "labels.block=64", "resources.actors=1"]
    return load_config(TINY, [f"storage.root={root}", *settings])


@pytest.fixture(scope="module")
def made(cluster, config):
    return run_until(config)


def test_every_output_is_whole(made, config):
    report = made.report
    assert set(report["models"]) == {"teacher", "student", "bm25"}
    student, teacher = report["models"]["student"], report["models"]["teacher"]
    assert report["retention"] == pytest.approx(
        student["metrics"]["ndcg@10"]["value"] / teacher["metrics"]["ndcg@10"]["value"]
    )
    assert 0 < student["parameters"] < teacher["parameters"]
    manifest = load_artifact(Path(made.places["artifact"])).manifest
    assert manifest["made_from"]["teacher_fingerprint"] == Path(made.places["labels"]).name
    version = Registry(Path(config.storage.root)).resolve("tiny@champion", "test")
    assert str(version.folder) == made.places["artifact"]
    assert list(Path(config.storage.root, "partial").iterdir()) == []


def test_served_scores_are_calibrated_on_the_valid_split(made):
    artifact = load_artifact(Path(made.places["artifact"]))
    pairs = Prepared("", Path(made.places["data"])).pairs
    valid = pairs.filter(pl.col("split") == "valid")
    scores = artifact.scorer().score(valid["query"].to_list(), valid["text"].to_list())
    fitted = calibrate(scores.astype(np.float64), (valid["label"] / pairs["label"].max()).to_numpy())
    expected = (fitted.scale, fitted.offset) if fitted.scale > 0 else (1.0, 0.0)
    assert artifact.calibration == pytest.approx(expected, rel=1e-2)


@pytest.fixture
def two_teachers(tmp_path) -> list[str]:
    """Overrides that make a teacher of a cross-encoder and a sentence encoder, three to one."""
    tiny_cross_encoder(max_length=64).save(tmp_path / "cross")
    tiny_cross_encoder(seed=1, max_length=64).save(tmp_path / "bi")
    return [
        "data.shop.queries=30",
        "resources.actors=1",
        "labels.precision=float32",
        "labels.made_queries=5",
        f"storage.root={tmp_path / 'root'}",
        f"teacher.model={tmp_path / 'cross'}",
        "teacher.weight=3",
        f"teacher.ensemble=[{{model: {tmp_path / 'bi'}, kind: bi}}]",
    ]


def listed_pairs(made) -> pl.DataFrame:
    return pl.read_parquet(Path(made.places["lists"], "*.parquet")).explode("items").unnest("items")


def test_soft_labels_are_the_ensembles(cluster, tmp_path, two_teachers):
    made = run_until(load_config(TINY, two_teachers), "label")
    pairs = listed_pairs(made)
    queries, texts = pairs["query"].to_list(), pairs["text"].to_list()
    encoder = load_cross_encoder(tmp_path / "cross", "test", 64)
    ours = torch_scorer(encoder, "cpu", "float32", 512).score(queries, texts)
    others = load_bi_encoder(str(tmp_path / "bi"), "test", max_length=64).score(queries, texts)
    valid = pl.read_parquet(Path(made.places["data"], "pairs.parquet")).filter(pl.col("split") == "valid")
    known = pairs.with_columns(ours=ours, others=others).join(valid, on=["query", "text"], how="semi")
    known = known.unique(["query", "text"])
    scale = known["ours"].std(ddof=0) / known["others"].std(ddof=0)
    expected = 0.75 * ours + 0.25 * ((others - known["others"].mean()) * scale + known["ours"].mean())
    assert pairs["score"].to_list() == pytest.approx(expected.tolist(), abs=1e-4)
    assert abs(expected - ours).max() > 0.01
    assert pairs["label"].null_count() > 5
    # The folder is a model of its own, and gives the same scores.
    scored = load_ranker(made.places["teacher"], "test", tmp_path).score(pairs)
    assert scored.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_each_list_takes_the_member_that_agrees_with_its_judgements(cluster, tmp_path, two_teachers):
    by_mean = listed_pairs(run_until(load_config(TINY, two_teachers), "label"))
    chosen = listed_pairs(run_until(load_config(TINY, [*two_teachers, "teacher.combine=agreement"]), "label"))
    judged = by_mean.filter(pl.col("label").is_not_null())
    accuracies = [
        per_query(judged, frame.filter(pl.col("label").is_not_null())["score"].to_numpy())["pairwise_accuracy"].mean()
        for frame in (by_mean, chosen)
    ]
    assert accuracies[1] > accuracies[0] + 0.02


def test_labels_keep_the_logits_of_a_teacher_that_grades(cluster, tmp_path, two_teachers):
    teacher = tiny_cross_encoder(max_length=64)
    add_grades(teacher.model, 2)  # its own score becomes a third grade
    teacher.model.config.id2label = {grade: str(grade) for grade in range(3)}
    teacher.save(tmp_path / "graded")
    ready = [f"teacher.model={tmp_path / 'graded'}", "teacher.ensemble=[]"]
    pairs = listed_pairs(run_until(load_config(TINY, [*two_teachers, *ready]), "label"))
    queries, texts = pairs["query"].to_list(), pairs["text"].to_list()
    graded = load_cross_encoder(tmp_path / "graded", "test", 64)
    logits = torch_scorer(graded, "cpu", "float32", 512, grades=True).score(queries, texts)
    assert np.array(pairs["logits"].to_list()) == pytest.approx(logits, abs=1e-4)
    scores = torch_scorer(graded, "cpu", "float32", 512).score(queries, texts)
    assert pairs["score"].to_numpy() == pytest.approx(scores, abs=1e-4)
    assert scores.std() > 0.01


def test_a_registered_student_is_pruned_and_trained_again(made, config):
    settings = ["student.init=tiny@challenger", "student.prune.heads=0.5", "student.prune.units=0.75"]
    again = run_until(load_config(config.model_dump(mode="json"), settings), "train")
    pruned = load_cross_encoder(again.places["student"], "test")
    before = load_artifact(Path(made.places["artifact"])).encoder()
    depth, width = before.layers, before.model.config.intermediate_size
    assert pruned.model.config.kept_heads == [before.model.config.num_attention_heads // 2] * depth
    assert pruned.model.config.kept_units == [width // 4] * depth
    assert pruned.parameters < before.parameters


def test_a_sentence_encoder_teaches_alone_by_logits_made_of_its_cosines(cluster, tmp_path, two_teachers):
    ready = [f"teacher.model={tmp_path / 'bi'}", "teacher.kind=bi", "teacher.ensemble=[]", "student.init=random"]
    made = run_until(load_config(TINY, [*two_teachers, *ready, "train.max_steps=2"]), "train")
    pairs = listed_pairs(made)
    queries, texts = pairs["query"].to_list(), pairs["text"].to_list()
    cosines = load_bi_encoder(str(tmp_path / "bi"), "test", max_length=64).score(queries, texts)
    told = json.loads(Path(made.places["teacher"], "ensemble.json").read_text())
    ranked = load_ranker(made.places["teacher"], "test", tmp_path).score(pairs)
    for logits in (pairs["score"].to_numpy(), ranked):
        assert (logits - told["offset"]) / told["scale"] == pytest.approx(cosines, abs=1e-4)


def test_a_teacher_that_beats_nothing_is_refused_with_the_numbers(cluster, two_teachers, tmp_path):
    config = load_config(TINY, [*two_teachers, "teacher.gate=on"])
    with pytest.raises(
        GateError, match=r"doesn't beat .*bm25.* \(nDCG@10, pairwise accuracy: teacher 0\.\d+, 0\.\d+; bm25"
    ):
        run_until(config, "label")
    assert list((tmp_path / "root" / "ensembles").iterdir()), "what was taught stays"
    assert not (tmp_path / "root" / "labels").exists()


def test_labels_in_int8_are_close_to_those_in_float32(cluster, tmp_path):
    tiny_cross_encoder(max_length=64).save(tmp_path / "teacher")
    settings = [f"storage.root={tmp_path / 'root'}", "data.shop.queries=60", "teacher.gate=off", "resources.actors=1"]
    settings += [f"teacher.model={tmp_path / 'teacher'}"]
    stores = []
    for precision in ("float32", "int8"):
        made = run_until(load_config(TINY, [*settings, f"labels.precision={precision}"]), "label")
        stores.append(open_store(made.places["labels"]))
    report = compare(*stores)
    assert report["compared"] == report["left_pairs"] == report["right_pairs"] > 100
    assert 0.99 < report["spearman"] < 1
    (told,) = [json.loads(path.read_text()) for path in (tmp_path / "root").glob("quantised/*/fidelity.json")]
    assert told["correlation"] > 0.99


def test_a_teacher_that_int8_changes_is_refused(made, config):
    labels = config.labels.model_copy(update={"precision": "int8"})
    # It learnt so little that its scores hardly differ; what rounding does to them decides their order.
    with pytest.raises(GateError, match=r"int8: rank correlation with float32 0\.[0-8].*use float32"):
        run_until(config.model_copy(update={"labels": labels}), "label")
    assert len(list(Path(config.storage.root, "labels").iterdir())) == 1


def test_a_step_that_another_run_finished_first_stands(tmp_path):
    run = Run(load_config(TINY, [f"storage.root={tmp_path}"]), Reporter())

    def build(folder: Path) -> None:
        (folder / "ours").touch()
        other = tmp_path / "lists" / "key"
        other.mkdir(parents=True)
        (other / "theirs").touch()

    assert [path.name for path in run.step("lists", "key", build).iterdir()] == ["theirs"]
    assert list((tmp_path / "partial").iterdir()) == []


def test_the_gate_says_what_it_measured(made):
    report = json.loads(Path(made.places["gate"]).read_text())
    assert set(report["models"]) == {"teacher", "bm25"}
    teacher, bm25 = (report["models"][name]["ndcg@10"]["value"] for name in ("teacher", "bm25"))
    assert report["differences"]["bm25"]["ndcg@10"]["value"] == pytest.approx(teacher - bm25, abs=1e-6)
    assert report["calibration"]["error_after"] < 0.2


def test_each_pair_is_labelled_once(made, config):
    lists = pl.read_parquet(Path(made.places["lists"], "train.parquet")).explode("items").unnest("items")
    assert lists["score"].null_count() == 0
    assert lists["label"].null_count() > 0, "unlabelled candidates have soft labels only"
    store = open_store(made.places["labels"], "")
    assert verify(store).clean
    labels = store.scan().collect()
    assert labels["pair_id"].n_unique() == labels.height
    valid = pl.read_parquet(Path(made.places["lists"], "valid.parquet")).explode("items").unnest("items")
    pairs = pl.read_parquet(Path(made.places["data"], "pairs.parquet"))
    held = pairs.filter(pl.col("split") == "test").select("query", "text")
    listed = pl.concat([lists.select("query", "text"), valid.select("query", "text")]).unique()
    assert held.join(listed, on="query", how="semi").is_empty(), "no list has a query of the test split"
    assert labels.height == listed.height + held.unique().height, "whose pairs are ready for the gate of a refresh"


def test_a_label_store_is_looked_after_by_commands(made, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(made.places["labels"], store)
    shown = shell("jobs.labels", "show", str(store))
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"max_length +64\b", shown.stdout)
    verified = shell("jobs.labels", "verify", str(store), "--json")
    told = json.loads(verified.stdout)
    assert (verified.returncode, told["clean"], told["problems"]) == (0, True, {})
    assert shell("jobs.labels", "compact", str(store), "--keep-hours", "0").returncode == 0
    diff = json.loads(shell("jobs.labels", "diff", str(store), made.places["labels"], "--json").stdout)
    assert (diff["compared"], diff["spearman"], diff["order_agreement"]["value"]) == (told["rows"], 1.0, 1.0)
    (file,) = store.glob("runs/*/labels-*.parquet")
    file.write_bytes(file.read_bytes()[:-9])
    damaged = shell("jobs.labels", "verify", str(store))
    assert damaged.returncode == 1
    assert re.fullmatch(r"error: '.*store' is damaged: changed file: runs/.*parquet; .*\n", damaged.stderr)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["verify", "nowhere"], "error: 'nowhere' is no label store (it has no teacher.json)"),
        (["diff", "nowhere"], "error: diff takes two stores, the others one"),
        (["show", "a", "b"], "error: diff takes two stores, the others one"),
        (["compact", "nowhere", "--keep-hours", "-1"], "error: --keep-hours is -1.0; give 0 or more"),
        (["verify", "gopher://x"], "error: STORE: 'gopher://x' can't be opened"),
        (["burn", "nowhere"], "error: argument show|verify|compact|diff: invalid choice: 'burn'"),
    ],
)
def test_label_commands_refuse_what_they_cannot_use(arguments, told):
    result = shell("jobs.labels", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1


def test_items_of_a_late_student_are_indexed_and_kept_up_to_date(made, config, tmp_path, capsys):
    late = {"family": "late", "vectors": 4, "width": 16, "layers": 1}
    student = config.student.model_copy(update=late)
    trained = run_until(config.model_copy(update={"student": student}), "export")
    evaluated = [event["model"] for event in events_of(capsys) if event.get("state") == "evaluating"]
    assert evaluated == ["student"], "teacher and BM25 are as they were"
    artifact = load_artifact(Path(trained.places["artifact"]))
    assert artifact.manifest["family"] == "late"
    titles = pl.read_parquet(Path(made.places["data"], "items.parquet")).head(30)
    rows = [{"item_id": i, "title": t} for i, t in titles.select("item_id", "text").unique("item_id").iter_rows()]
    items = write_jsonl(tmp_path / "items.jsonl", rows)
    out = tmp_path / "index"
    done = index_items(config, str(artifact.folder), str(items), out, prune=False)
    assert (done["items"], done["encoded"]) == (len(rows), len(rows))
    ids, texts = [row["item_id"] for row in rows], [row["title"] for row in rows]
    scores = KnownItemScorer(ItemEncoder(artifact.encoder()), open_index(out, "test")).score("drill", ids)
    assert scores == pytest.approx(artifact.scorer().score(["drill"] * len(ids), texts), abs=0.2)
    assert abs(scores - artifact.scorer().score(["drill"] * len(ids), texts)).mean() < 0.05
    write_jsonl(items, [*rows[1:-1], {"item_id": rows[-1]["item_id"], "title": "something else"}])
    done = index_items(config, str(artifact.folder), str(items), out, prune=True)
    assert (done["items"], done["encoded"], done["removed"]) == (len(rows) - 1, 1, 1)


def test_a_student_is_compressed_unless_that_costs_quality(made, config, tmp_path):
    pairs = pl.read_parquet(Path(made.places["data"], "pairs.parquet"))
    rows = pairs.select("query", "item_id", "label", "split", title="text").to_dicts()
    judgements = write_jsonl(tmp_path / "judgements.jsonl", rows)
    (tmp_path / "artifact").mkdir()
    export_artifact(tiny_cross_encoder(), tmp_path / "artifact", {}, ["title"])
    common = ("--judgements", str(judgements), f"storage.root={config.storage.root}", "--out", str(tmp_path / "small"))
    refused = shell("jobs.compress", "--model", made.places["artifact"], *common)
    # It learnt so little that its scores hardly differ; what rounding does to them decides their order.
    assert refused.returncode == 1
    assert "error: int8: rank correlation with float32 0." in refused.stderr
    assert not (tmp_path / "small").exists()
    done = shell("jobs.compress", "--model", str(tmp_path / "artifact"), "--name", "small", *common)
    assert done.returncode == 0, done.stderr
    assert "registered small/1 (challenger, champion)" in done.stdout
    measured = load_artifact(tmp_path / "small").manifest["made_from"]["compressed"]
    assert measured["correlation"] > 0.99
    assert set(measured["models"]) == set(measured["latency"]) == {"float32", "int8"}
    assert all(0 < one["p50_ms"] <= one["p99_ms"] for one in measured["latency"].values())
    assert "a ranking of 50: float32 " in done.stdout
    again = shell("jobs.compress", "--model", str(tmp_path / "artifact"), *common)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: --out ")
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "judgements.jsonl", "small"}


def test_both_forms_of_a_student_know_what_was_held_out_from_it(made, config, tmp_path):
    artifact = load_artifact(Path(made.places["artifact"]))
    quantise_artifact(artifact, tmp_path)
    for folder in (artifact.folder, tmp_path):
        ranker = load_ranker(str(folder), "test", tmp_path)
        assert ranker.held_out == {"test": config.data.test, "valid": config.data.valid}
        assert ranker.fields == tuple(config.data.fields)


def test_no_query_of_the_test_split_is_learnt_from(made):
    pairs = pl.read_parquet(Path(made.places["data"], "pairs.parquet"))
    held_out = set(pairs.filter(pl.col("split") == "test")["query_id"])
    for split in ("train", "valid"):
        lists = pl.read_parquet(Path(made.places["lists"], f"{split}.parquet"))
        assert held_out.isdisjoint(lists["query_id"])


def test_a_second_run_skips_every_step(made, config, capsys):
    again = run_until(config)
    assert again.places == made.places
    events = events_of(capsys)
    states = {event["event"]: event["state"] for event in events}
    steps = ("data", "teachers", "lists", "students", "reports", "artifacts")
    assert {step: states[step] for step in steps} == dict.fromkeys(steps, "stands")


@pytest.mark.parametrize(
    ("section", "changes"), [("distill", {"temperature": Schedule(start=3.0, end=3.0)}), ("train", {"seed": 5})]
)
def test_a_changed_student_keeps_teacher_and_labels(made, config, section, changes):
    changed = config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})
    places = run_until(changed, "train").places
    assert places["teacher"] == made.places["teacher"]
    assert places["lists"] == made.places["lists"]
    assert places["student"] != made.places["student"]


def test_evaluate_gives_the_json_contract(made, config, tmp_path):
    pairs = pl.read_parquet(Path(made.places["data"], "pairs.parquet"))
    halves = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    texts = pairs.select("query", "item_id", "label", "split", title="text")
    for half, even in zip(halves, (True, False), strict=True):
        texts.filter((pl.col("query").str.len_chars() % 2 == 0) == even).write_parquet(half)
    files = [argument for half in halves for argument in ("--judgements", str(half))]
    arguments = [*files, "--split", "test", "--against", "bm25", "--json", f"storage.root={config.storage.root}"]
    result = shell("jobs.evaluate", "--model", "tiny@champion", *arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {"model", "judgements", "queries", "pairs", "metrics", "slices", "pairs_per_second", "parameters"} < set(
        report
    )
    assert report["model"] == "tiny/1"
    assert set(report["metrics"]) == {"ndcg@10", "mrr@10", "map", "auc", "pairwise_accuracy", "spearman"}
    student = made.report["models"]["student"]
    assert report["metrics"]["ndcg@10"]["value"] == pytest.approx(student["metrics"]["ndcg@10"]["value"], abs=1e-6)
    assert (report["pairs"], report["bytes"]) == (student["pairs"], student["bytes"])
    assert report["against"]["model"] == "bm25"
    gained = report["against"]["differences"]["ndcg@10"]["value"]
    assert gained == pytest.approx(made.report["differences"]["student - bm25"]["value"], abs=1e-6)


GOOD_ROWS = [{"query": f"q{n % 20}", "item_id": f"i{n}", "title": f"thing {n}", "label": n % 3} for n in range(200)]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Overrides of tiny.yaml by kind of mistake, and what the error must name."""
    source = "data={sources: [{path: %s}]}"
    (folder / "empty.jsonl").touch()
    (folder / "untitled.csv").write_text("query,item_id,label\nlamp,1,2\n")
    texts = write_rows(folder / "texts.jsonl", [{**row, "label": "good"} for row in GOOD_ROWS])
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    return {
        "no such file": ([source % (folder / "none.jsonl")], "none.jsonl"),
        "empty file": ([source % (folder / "empty.jsonl")], "empty"),
        "no title": ([source % (folder / "untitled.csv")], "title"),
        "label is text": ([source % texts], "label 'good'"),
        "typo": (["train.epocs=3"], "train.epochs"),
        "no weights": ([f"teacher.base={model}"], "no weights"),
    }


@pytest.mark.parametrize("kind", ["no such file", "empty file", "no title", "label is text", "typo", "no weights"])
def test_bad_input_is_one_line_and_exit_code_2(kind, tmp_path):
    overrides, names = bad_inputs(tmp_path)[kind]
    root = tmp_path / "root"
    result = shell("jobs.pipeline", "--config", str(TINY), f"storage.root={root}", *overrides)
    assert result.returncode == 2, result.stderr
    said = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert names in said[0]
    made = {path.parent.name for path in root.glob("*/*/config.yaml")}
    assert made <= {path.name for path in root.glob("data/*")}, "what stands is whole: the data at most"
    assert list(root.glob("partial/*")) == []


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = shell("serve.app", "--model", str(tmp_path), f"serve.port={port}")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: serve.port={port}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["teach", "label", "train", "evaluate", "export", "pipeline"])
def test_help_lists_settings(verb):
    result = shell(f"jobs.{verb}", "--help")
    assert result.returncode == 0
    assert "train.learning_rate" in result.stdout


def test_dry_run_plans_and_writes_nothing(tmp_path):
    result = shell("jobs.pipeline", "--config", str(TINY), f"storage.root={tmp_path / 'root'}", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "720 pairs" in result.stdout
    counts = r"872 +0 +872 +[\d,]+ +[\d,]+ +0\.\d+ +-"
    assert re.search(rf"pairs/s +hours +cost\n.*\n.+ \(stands in\) +{counts}", result.stdout)
    assert not (tmp_path / "root").exists()


def test_dry_run_tells_the_cost_in_int8_of_what_is_not_stored(made, config):
    labels = config.labels.model_copy(update={"precision": "int8"})
    resources = config.resources.model_copy(update={"price_per_hour": 3600.0})
    run = Run(config.model_copy(update={"labels": labels, "resources": resources}), Reporter())
    prepared = Prepared(Path(made.places["data"]).name, Path(made.places["data"]))
    (cost,) = labelling_cost(run, prepared)
    assert (cost.stored, cost.missing) == (0, cost.pairs), "labels in float32 don't count"
    assert cost.row()[-1] == f"{cost.missing / cost.pairs_per_second:,.2f}"
    (stored,) = labelling_cost(Run(config, Reporter()), prepared)
    assert (stored.stored, stored.missing, stored.hours) == (cost.pairs, 0, 0.0)


def test_a_sample_to_be_timed_repeats_texts_as_labelling_does():
    pairs = pl.DataFrame({"text": [f"item {row % 1000:03}" for row in range(5000)], "pair_id": range(5000)})
    sample = neighbours(pairs, 512)
    assert sample.height in range(512 - 64, 513)
    assert sample["pair_id"].is_unique().all()
    assert sample["text"].n_unique() < sample.height / 4, "each item stands in five pairs"
    assert neighbours(pairs.head(70), 512).height == 70, "a small file is taken whole"


def test_judgements_that_measure_nothing_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", item, 0) for item in range(4)])
    with pytest.raises(DataError, match="--judgements: all labels"):
        evaluate_files(
            load_config({"data": {"sources": [{"path": str(path)}]}}), "bm25", [str(path)], None, frozenset()
        )


def test_a_model_is_tested_on_the_queries_that_were_held_out_from_it(tmp_path):
    rows = [judgement(f"query {query}", item, item) for query in range(60) for item in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    config = load_config({"data": {"sources": [{"path": str(path)}]}})
    tiny_cross_encoder(max_length=32).save(tmp_path / "model")
    own = frozenset({"data.test"})
    queries = {}
    for share in (None, 0.05, 0.6):
        if share:
            trained = config.model_copy(update={"data": config.data.model_copy(update={"test": share})})
            (tmp_path / "model" / "config.yaml").write_text(dump_config(trained))
        queries[share] = evaluate_files(config, str(tmp_path / "model"), [str(path)], "test", own)["queries"]
    assert queries[0.05] < queries[None] < queries[0.6]
    asked = evaluate_files(config, str(tmp_path / "model"), [str(path)], "test", frozenset())
    assert asked["queries"] == queries[None]
    against = evaluate_files(config, "bm25", [str(path)], "test", own, str(tmp_path / "model"))
    assert against["queries"] == queries[None], "the model that is measured decides"


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_model_folder_is_one_line(tmp_path, content):
    tiny_cross_encoder(max_length=32).save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=f"--model: '{tmp_path}' can't be loaded .*; give a whole model folder"):
        load_ranker(str(tmp_path), "--model", tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["student.grades=4", "distill.grades.alpha=0.5"], r"student\.grades is 4 .* tells no grades apart"),
        (["student.grades=4", "distill.grades.alpha={start: 0, end: 1}", "teacher.model={graded}"], "tells 3 grades"),
        (
            ["labels.precision=int8", "teacher.kind=bi", "teacher.model={other}", "student.init=random"],
            "'int8', which a model of kind bi",
        ),
        (["distill.features.relation=1"], r"relation_heads is 12, which doesn't divide"),
        (["distill.features.hidden=1", "student.init={other}"], "another tokenizer than the teacher"),
        (["student.prune.heads=0.5", "student.init={roberta}"], "a RobertaForSequenceClassification can't be pruned"),
        (["student.init={late}"], r"is of family late; set student\.family=late"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_any_work(tmp_path, settings, told):
    folders = {name: tmp_path / name for name in ("graded", "other", "roberta", "late")}
    graded = tiny_cross_encoder()
    add_grades(graded.model, 2)
    graded.model.config.id2label = {grade: str(grade) for grade in range(3)}
    graded.save(folders["graded"])
    tiny_cross_encoder(width=48).save(folders["other"])
    tiny_cross_encoder().tokenizer.save_pretrained(folders["roberta"])
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaForSequenceClassification(RobertaConfig(vocab_size=300, num_labels=1, **shape)).save_pretrained(
        folders["roberta"]
    )
    make_student(Student(family="late"), tiny_cross_encoder(layers=3), 0).save(folders["late"])
    filled = [text.format(**folders) if "{start" not in text else text for text in settings]
    with pytest.raises(InputError, match=told):
        check_models(load_config(TINY, [f"storage.root={tmp_path}", *filled]))


def test_a_name_that_can_not_be_registered_is_refused_before_any_work(tmp_path):
    given = ["--model", str(tmp_path), "--judgements", str(tmp_path), "--out", str(tmp_path / "out")]
    result = shell("jobs.compress", *given, "--name", "a/b")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --name 'a/b' is no name")


def test_lineage_reaches_the_files_of_labels(made, config):
    root = config.storage.folder
    version = Registry(root).resolve(made.places["registered"].split()[0], "test")
    links = list(lineage(root, version))
    assert all(link.sound for link in links), links
    assert [link.what for link in links if link.state == "there"] == ["student", "candidate lists", "teacher", "data"]
    labels = [link for link in links if link.what.startswith("labels of")]
    (store,) = [link.where for link in links if link.what == "label store"]
    assert labels
    path = Path(store, labels[0].where)
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-20] + b"x" + whole[-19:])
        assert [link.where for link in lineage(root, version) if not link.sound] == [labels[0].where]
        path.unlink()
        assert [link.state for link in lineage(root, version) if not link.sound] == ["gone"]
    finally:
        path.write_bytes(whole)
    assert all(link.sound for link in lineage(root, version))
