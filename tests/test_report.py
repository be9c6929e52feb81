"""The report's numbers, and its page in headless Chromium where there is one."""

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from builders import CHROMIUM, browse

from rankstill.configfile import load_config
from rankstill.lineage import Link
from rankstill.metrics import per_query, retention
from tune.finals import FinalLook
from tune.report import report_sweep
from tune.trials import Trial, Variant

HOSTILE = '</script><script>document.body.innerHTML = ""</script> <b>"oak"</b> <!-- \u2028'


def variant(trial: str, precision: str, ndcg: float, p99: float) -> Variant:
    latency = {"50": {"p50_ms": p99 / 2, "p99_ms": p99}}
    timing = {"latency": latency, "bytes": 1000, "resident_bytes": 2000, "pairs_per_second": 1e4, "load_seconds": 0.5}
    return Variant(trial, precision, "/a", "torch", {"value": ndcg, "low": ndcg - 0.01, "high": ndcg + 0.01}, timing)


def trials() -> list[Trial]:
    found = []
    for number in range(6):
        name = f"{number:03d}-a"
        epochs = tuple({"epoch": float(epoch), "ndcg@10": 0.6 + 0.02 * number + 0.01 * epoch} for epoch in (1, 2))
        params = {"distill.temperature": 0.5 + number, "distill.alpha": number / 6, "student.family": "late"}
        forms = (variant(name, "float32", 0.6 + 0.02 * number, 10.0 + number), variant(name, "int8", 0.6, 5.0 + number))
        found.append(Trial(number, name, params, "finished", epochs, 12.0, variants=forms))
    stopped = replace(found[1], number=6, name="006-a", state="stopped", variants=(), epochs=found[1].epochs[:1])
    failed = Trial(7, "007-a", found[0].params, "failed", reason=HOSTILE)
    return [*found, stopped, failed]


def look() -> FinalLook:
    rows = [
        {
            "query_id": f"q{query}",
            "query": f"{HOSTILE} {query}" if query % 2 else "lamp",
            "item_id": f"i{query}-{item}",
            "pair_id": f"{query}-{item}",
            "text": f"{HOSTILE} item {item}",
            "label": float(item % 3),
            "source": "shop",
            "frequency": None,
        }
        for query in range(30)
        for item in range(6)
    ]
    pairs = pl.DataFrame(rows)
    noise = np.random.default_rng(0).normal(0, 1, (2, pairs.height))
    labels = pairs["label"].to_numpy()
    scores = {"teacher": labels + 0.3 * noise[0], "student": labels + noise[1], "bm25": noise[0]}
    tables = {role: per_query(pairs, found) for role, found in scores.items()}
    reports = {role: {"metrics": {"ndcg@10": {"value": table["ndcg@10"].mean()}}} for role, table in tables.items()}
    return FinalLook(pairs, reports, tables, scores, pairs["item_id"].str.ends_with("-0").not_())


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    config = load_config({"data": {"shop": {}}, "sweep": {"trials": 8, "budget": {"p99_ms": 13}}})
    made, dimensions = trials(), ["distill.temperature", "distill.alpha", "student.family"]
    links = [Link("version shop/1", "/somewhere", "verified")]
    winner = made[5].variants[0]
    report_sweep(folder, config, dimensions, made, 0.8, winner=winner, look=look(), links=links)
    return folder


def test_the_numbers_are_those_of_trials_and_test(reported):
    data = json.loads((reported / "report.json").read_text())
    found = look()
    every, *parts = data["slices"]
    assert every["name"] == "all queries"
    ours, theirs = (found.tables[role]["ndcg@10"].mean() for role in ("student", "teacher"))
    assert every["value"] == pytest.approx(ours / theirs, abs=1e-6)
    assert every["low"] < every["value"] < every["high"]
    assert {"teacher least sure", "teacher most sure", "long query", "short query"} <= {one["name"] for one in parts}
    unseen = found.pairs.filter(found.unseen)
    ours, theirs = (
        per_query(unseen, found.scores[role][found.unseen.to_numpy()])["ndcg@10"].mean()
        for role in ("student", "teacher")
    )
    assert {one["name"]: one["value"] for one in parts}["unseen items"] == pytest.approx(ours / theirs, abs=1e-6)
    queries = data["queries"]
    assert queries["wins"] + queries["losses"] + queries["ties"] == 30
    worst = queries["worst"][0]
    differences = found.tables["student"]["ndcg@10"] - found.tables["teacher"]["ndcg@10"]
    assert worst["difference"] == pytest.approx(differences.min())
    assert [item["teacher"] for item in worst["items"]] == [1, 2, 3, 4, 5, 6]
    assert sorted(item["student"] for item in worst["items"]) == [1, 2, 3, 4, 5, 6]
    assert [one["name"] for one in data["variants"] if one["pareto"]] == [
        "000-a int8", "001-a float32", "002-a float32", "003-a float32", "004-a float32", "005-a float32",
    ]  # fmt: skip
    teacher, student = np.array(data["agreement"]).T
    assert np.corrcoef(teacher, student)[0, 1] == pytest.approx(
        np.corrcoef(found.scores["teacher"], found.scores["student"])[0, 1], abs=1e-2
    )


def test_retention_is_a_ratio_of_means():
    table = pl.DataFrame({"query_id": ["a", "b", "c"], "ndcg@10": [0.5, 1.0, None]})
    other = pl.DataFrame({"query_id": ["b", "a", "d"], "ndcg@10": [1.0, 1.0, 0.1]})
    assert retention(table, other, "ndcg@10").value == pytest.approx(0.75)
    assert np.isnan(retention(table.head(0), other, "ndcg@10").value)


def test_the_page_holds_its_data_whatever_texts_say(reported):
    page = (reported / "report.html").read_text(encoding="utf-8")
    (embedded,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert json.loads(embedded) == json.loads((reported / "report.json").read_text(encoding="utf-8"))
    assert page.count("<script") == 2
    assert not re.search(r"(src|href)\s*=|url\(|https?://(?!www\.w3\.org)", page), "no network"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_it_without_an_error(reported, tmp_path, width):
    measure = "<script>document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth</script></body>"
    page = tmp_path / "report.html"
    page.write_text(
        (reported / "report.html").read_text(encoding="utf-8").replace("</body>", measure), encoding="utf-8"
    )
    document, said = browse(page.as_uri(), tmp_path, width)
    assert "CONSOLE" not in said, said
    drawn = {name: part.count("<circle") + part.count("<path") for name, part in sections(document).items()}
    assert drawn["pareto"] >= 12 + 1
    assert drawn["surface"] == 7
    assert drawn["curves"] == 2 * 7
    assert drawn["agreement"] == 180
    assert drawn["parallel"] == 7
    assert drawn["slices"] >= 4
    assert sections(document)["queries"].count("<details") == min(
        20, json.loads((reported / "report.json").read_text())["queries"]["losses"]
    )
    assert "&lt;/script&gt;" in sections(document)["queries"]
    assert int(re.findall(r'data-wide="(-?\d+)"', document)[0]) <= 0, "nothing sticks out"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_sweep_that_has_just_begun_has_a_page_too(tmp_path):
    config = load_config({"data": {"shop": {}}})
    report_sweep(tmp_path, config, [], [], None)
    document, said = browse((tmp_path / "report.html").as_uri(), tmp_path, 1280)
    assert "CONSOLE" not in said, said
    assert "No student is finished yet." in document


def sections(document: str) -> dict[str, str]:
    """What the page drew, by the id of the place."""
    body = document[document.index("<body") :]
    names = ["tiles", "pareto", "surface", "curves", "agreement", "parallel", "slices", "queries", "costs", "trials"]
    starts = [body.index(f'id="{name}"') for name in names]
    return {name: body[start:end] for name, start, end in zip(names, starts, [*starts[1:], len(body)], strict=True)}
