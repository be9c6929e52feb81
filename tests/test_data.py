import gzip
import math
from collections import Counter

import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest
from builders import data_config, judgement, write_jsonl

from rankstill.config import Data, Shop, Source
from rankstill.data import assemble_pairs, build_lists, fingerprint_data, prepare, read_judgements, with_item_text
from rankstill.errors import DataError
from rankstill.schema import ITEMS, LISTS, PAIRS
from rankstill.text import normalise_query, pair_id, render_item


def prepared(config: Data, folder) -> pl.DataFrame:
    prepare(config, folder)
    return pl.read_parquet(folder / "pairs.parquet")


def refusal(config: Data, folder) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split_of(pairs: pl.DataFrame) -> dict[str, str]:
    """The split of each query; fails where a query is in more than one."""
    splits = pairs.group_by("query").agg(pl.col("split").unique())
    assert splits["split"].list.len().max() == 1
    return {query: split for query, (split,) in splits.iter_rows()}


def test_pairs_have_text_ids_and_labels(tmp_path):
    rows = [
        judgement(" Cordless  DRILL", 1, 3, brand="Torkem", description="18\u00a0V", frequency=7),
        judgement("lamp", 2, "0.5"),
    ]
    folder = tmp_path / "out"
    folder.mkdir()
    summary = prepare(data_config(write_jsonl(tmp_path / "shop.jsonl", rows)), folder)
    assert pq.read_schema(folder / "pairs.parquet").equals(PAIRS)
    assert pq.read_schema(folder / "items.parquet").equals(ITEMS)
    first, second = pl.read_parquet(folder / "pairs.parquet").to_dicts()
    text = render_item(rows[0], ("title", "brand", "description"))
    assert first["query"] == normalise_query(rows[0]["query"]) == "cordless drill"
    assert first["text"] == text == "thing 1 | Torkem | 18 V"
    assert first["pair_id"] == pair_id("cordless drill", text)
    assert (first["item_id"], first["label"], first["source"], first["frequency"]) == ("i1", 3.0, "shop", 7)
    assert (second["text"], second["label"], second["frequency"]) == ("thing 2", 0.5, None)
    assert summary["sources"] == [{"name": "shop", "rows": 2, "rejected": 0}]
    assert (summary["pairs"], summary["items"], summary["merged"]) == (2, 2, 0)
    assert orjson.loads((folder / "summary.json").read_bytes()) == summary
    assert (folder / "rejects.jsonl").read_bytes() == b""


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, form):
    frame = pl.DataFrame([judgement("drill", 1, 2.0, brand="B\nC"), judgement("drill", 2, 0.0, brand="")])
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        frame.write_parquet(path)
    elif form == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="\t" if form == "tsv" else ",")
    pairs = read_judgements([Source(path=str(path))], Data(shop=Shop()))
    assert pairs["text"].to_list() == ["thing 1 | B C", "thing 2"]
    assert pairs["label"].to_list() == [2.0, 0.0]


def test_columns_are_mapped_and_labels_scaled(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("search,name,grade,title,sku\ndrill,Drill 18 V,2,ignored,s1\n")
    columns = {"query": "search", "title": "name", "label": "grade", "item_id": "sku"}
    pairs = prepared(Data(sources=(Source(path=str(path), columns=columns, label_scale=1.5, name="mine"),)), tmp_path)
    (row,) = pairs.to_dicts()
    assert (row["query"], row["text"], row["label"], row["item_id"]) == ("drill", "Drill 18 V", 3.0, "s1")
    assert row["source"] == "mine"


def test_unusable_rows_are_written_down_with_line_and_reason(tmp_path):
    good = orjson.dumps(judgement("drill", 1, 1)).decode()
    lines = [
        good,
        orjson.dumps(judgement("", 2, 1)).decode(),
        orjson.dumps(judgement(None, 3, 1)).decode(),
        orjson.dumps({**judgement("drill", 4, 1), "title": " \t"}).decode(),
        orjson.dumps(judgement("drill", 5, "high")).decode(),
        orjson.dumps(judgement("drill", 6, None)).decode(),
        orjson.dumps(judgement("drill", 7, -1)).decode(),
        orjson.dumps(judgement("drill", 8, "inf")).decode(),
        orjson.dumps(judgement("drill", 9, "nan")).decode(),
        orjson.dumps(judgement("drill", 10, 1, split="dev")).decode(),
        "{not json",
        "[1, 2]",
        good,
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    folder = tmp_path / "out"
    folder.mkdir()
    summary = prepare(data_config(path, max_bad_rows=0.9), folder)
    rejects = [orjson.loads(line) for line in (folder / "rejects.jsonl").read_bytes().splitlines()]
    reasons = {reject["line"]: reject["reason"] for reject in rejects}
    assert all(reject["file"].endswith("a.jsonl") for reject in rejects)
    assert rejects[3]["row"] == judgement("drill", 5, "high")
    assert summary["sources"] == [{"name": "a", "rows": 13, "rejected": 11}]
    assert list(reasons) == list(range(2, 13))
    assert reasons[2] == reasons[3] == "no query"
    assert reasons[4] == "no title"
    assert reasons[5] == "label 'high' is not a number"
    assert reasons[6] == "label None is not a number"
    for line, value in ((7, -1), (8, "inf"), (9, "nan")):
        assert reasons[line] == f"label {value!r} is not a finite number of 0 or more"
    assert reasons[10] == "split 'dev' is none of train, valid, test"
    assert reasons[11].startswith("not valid JSON")
    assert reasons[12] == "not a JSON object"


@pytest.mark.parametrize("blank", ["\x00", "\x01\x1f", "\u00a0"])
@pytest.mark.parametrize("name", ["query", "title"])
def test_what_normalises_to_nothing_is_no_query_and_no_title(tmp_path, name, blank):
    rows = [judgement("drill", 1, 1), {**judgement("lamp", 2, 1), name: blank}]
    prepare(data_config(write_jsonl(tmp_path / "a.jsonl", rows), max_bad_rows=0.5), tmp_path)
    assert f'"no {name}"' in (tmp_path / "rejects.jsonl").read_text()


def test_too_many_unusable_rows_stop_before_anything_is_made(tmp_path):
    rows = [judgement("drill", number, 1) for number in range(99)] + [judgement("drill", 99, "x")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    message = refusal(data_config(path, max_bad_rows=0.009), tmp_path)
    assert "1 of 100 rows" in message
    assert str(path) in message
    assert "data.max_bad_rows=0.009" in message
    assert "a.jsonl line 100: label 'x' is not a number" in message
    assert not (tmp_path / "pairs.parquet").exists()
    assert prepare(data_config(path, max_bad_rows=0.01), tmp_path)["pairs"] == 99, "as many as allowed"


def test_a_source_without_a_usable_row_stops_whatever_the_limit(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, "high"), judgement("drill", 2, "low")])
    message = refusal(data_config(path, max_bad_rows=1.0), tmp_path)
    assert "2 of 2 rows" in message
    assert "label 'high' is not a number" in message


def test_the_limit_holds_for_each_source_alone(tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", [judgement("drill", number, 1) for number in range(1000)])
    bad = write_jsonl(tmp_path / "bad.jsonl", [judgement("a", 1, 1), judgement("b", 2, "x")])
    message = refusal(data_config(good, bad, max_bad_rows=0.1), tmp_path)
    assert message.startswith("data.sources.1.path")


@pytest.mark.parametrize("content", ["", "query,title,label\n", "\n\n"])
def test_an_empty_file_is_named(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_text(content)
    message = refusal(data_config(path), tmp_path)
    assert message.startswith(f"data.sources.0.path: {str(path)!r} is empty")


@pytest.mark.parametrize("missing", ["query", "title", "label"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, missing):
    row = judgement("drill", 1, 1)
    del row[missing]
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    message = refusal(data_config(path), tmp_path)
    assert f"{str(path)!r} has no column {missing!r}" in message
    assert "item_id" in message
    assert f"columns: {{{missing}: NAME}}" in message


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ",")])
def test_cells_that_are_separated_by_something_else_are_told(tmp_path, name, delimiter):
    path = tmp_path / name
    path.write_text(f"query{delimiter}title{delimiter}label\nred shoe{delimiter}Shoe{delimiter}1\n")
    message = refusal(data_config(path), tmp_path)
    assert f"it seems to separate cells by {delimiter!r}; use commas in .csv and tabs in .tsv" in message


def test_a_mapped_column_that_is_missing_is_named_as_in_the_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)])
    message = refusal(Data(sources=(Source(path=str(path), columns={"title": "name"}),)), tmp_path)
    assert "has no column 'name'" in message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'{"query": "caf\xe9", "title": "t", "label": 1}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"query": "a", "title": "t", "label": 1}\n' * 99, mtime=0)[:-9]),
    ],
)
def test_a_file_that_is_damaged_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert name in refusal(data_config(tmp_path / name), tmp_path)


def test_a_file_that_is_not_there_is_named_with_its_setting(tmp_path):
    items = (Source(path=str(tmp_path / "absent.jsonl")),)
    config = data_config(write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)]), items=items)
    assert refusal(config, tmp_path).startswith("data.items.0.path: no such file")


def test_splits_have_about_the_right_shares_and_never_change(tmp_path):
    rows = [judgement(f"query {number}", number, 1) for number in range(4000)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    splits = split_of(prepared(data_config(path, test=0.2, valid=0.1), tmp_path))
    counts = Counter(splits.values())
    for split, share in (("test", 0.2), ("valid", 0.1), ("train", 0.7)):
        assert abs(counts[split] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    fewer = split_of(prepared(data_config(write_jsonl(path, rows[::-7])), tmp_path))
    assert fewer == {query: splits[query] for query in fewer}, "other rows and another order change no query's split"
    more_tests = split_of(prepared(data_config(path, test=0.3, valid=0.1), tmp_path))
    assert all(more_tests[query] == "test" for query, split in splits.items() if split == "test" and query in fewer)


def test_a_split_drawn_today_is_pinned(tmp_path):
    rows = [judgement(f"query {number}", number, 1) for number in range(12)]
    splits = split_of(prepared(data_config(write_jsonl(tmp_path / "a.jsonl", rows), test=0.4, valid=0.2), tmp_path))
    assert "".join(splits[f"query {number}"][1] for number in range(12)) == "rrereeearrer"


def test_shares_of_zero_hold_nothing_out(tmp_path):
    rows = [judgement(f"query {number}", number, 1) for number in range(50)]
    pairs = prepared(data_config(write_jsonl(tmp_path / "a.jsonl", rows), test=0, valid=0), tmp_path)
    assert set(pairs["split"]) == {"train"}


def test_a_files_own_split_wins(tmp_path):
    splits = ("train", "valid", "test")
    rows = [judgement(f"query {number}", number, 1, split=splits[number % 3]) for number in range(60)]
    found = split_of(prepared(data_config(write_jsonl(tmp_path / "a.jsonl", rows), test=0.9, valid=0), tmp_path))
    assert found == {f"query {number}": splits[number % 3] for number in range(60)}


def test_an_empty_split_is_drawn(tmp_path):
    rows = [judgement("drill", 1, 1, split=""), judgement("lamp", 2, 1, split=None)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert set(prepared(data_config(path, test=0, valid=0), tmp_path)["split"]) == {"train"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_query_held_out_anywhere_is_held_out_everywhere(tmp_path, order):
    one = [judgement("Drill", 1, 1, split="train"), judgement("lamp", 2, 1, split="train")]
    other = [judgement(" drill ", 3, 1, split="test"), judgement("lamp", 4, 1, split="valid")]
    paths = [write_jsonl(tmp_path / "one.jsonl", one), write_jsonl(tmp_path / "other.jsonl", other)]
    pairs = prepared(data_config(*paths[::order]), tmp_path)
    assert split_of(pairs) == {"drill": "test", "lamp": "valid"}
    assert pairs.height == 4


@pytest.mark.parametrize("order", [1, -1])
def test_the_same_pair_in_two_splits_is_held_out(tmp_path, order):
    rows = [judgement("drill", 1, 1, split="train"), judgement("drill", 1, 3, split="test")]
    (pair,) = prepared(data_config(write_jsonl(tmp_path / "a.jsonl", rows[::order])), tmp_path).to_dicts()
    assert pair["split"] == "test"


def test_an_item_judged_twice_gets_its_mean_label(tmp_path):
    rows = [
        judgement("drill", 1, 3, frequency=2),
        judgement("lamp", 1, 1),
        judgement("DRILL ", 1, 0, frequency=9),
        {**judgement("drill", 1, 3), "title": "thing  1\n"},
    ]
    folder = tmp_path / "out"
    folder.mkdir()
    summary = prepare(data_config(write_jsonl(tmp_path / "a.jsonl", rows)), folder)
    pairs = pl.read_parquet(folder / "pairs.parquet")
    assert pairs.select("query", "item_id", "label", "frequency").rows() == [
        ("drill", "i1", 2.0, 9),
        ("lamp", "i1", 1.0, None),
    ]
    assert (summary["pairs"], summary["merged"], summary["items"]) == (2, 2, 1)


def test_what_rows_contradict_each_other_in_is_told(tmp_path):
    rows = [
        judgement("drill", 1, 3, split="train"),
        judgement("drill", 1, 1, split="test"),
        judgement("drill", 2, 1),
        judgement("lamp", 2, 1),
        {**judgement("lamp", 2, 0), "title": "another"},
        judgement("lamp", 3, 2),
        judgement("lamp", 3, 2),
    ]
    config = data_config(write_jsonl(tmp_path / "a.jsonl", rows))
    assert prepare(config, tmp_path)["remarks"] == [
        "1 pairs were judged with different labels; each has their mean",
        "1 queries have rows of several splits; each is held out as far as any of them says",
        "1 item ids have several texts; each text is an item of its own",
    ]
    assert prepare(data_config(write_jsonl(tmp_path / "b.jsonl", rows[-2:])), tmp_path)["remarks"] == []


def test_items_of_the_same_text_stay_apart_but_share_a_soft_label(tmp_path):
    rows = [judgement("drill", 1, 3), {**judgement("drill", 2, 0), "title": "thing 1"}]
    summary = prepare(data_config(write_jsonl(tmp_path / "a.jsonl", rows)), tmp_path)
    pairs = pl.read_parquet(tmp_path / "pairs.parquet")
    assert pairs.select("item_id", "label").rows() == [("i1", 3.0), ("i2", 0.0)]
    assert pairs["pair_id"].n_unique() == 1
    assert summary["items"] == 1
    labels = pl.DataFrame({"pair_id": pairs["pair_id"][:1], "score": [0.5], "logits": [[0.0, 1.0]]})
    (built,) = build_lists(pairs, labels).to_pylist()
    assert [(item["item_id"], item["score"]) for item in built["items"]] == [("i1", 0.5), ("i2", 0.5)]


def test_an_item_without_an_id_is_named_by_its_text(tmp_path):
    rows = [
        {"query": "drill", "title": "thing", "label": 1},
        {"query": "lamp", "title": " thing", "label": 1, "item_id": ""},
        {"query": "lamp", "title": "other", "label": 1, "item_id": None},
        {"query": "lamp", "title": "own", "label": 1, "item_id": 77},
    ]
    ids = prepared(data_config(write_jsonl(tmp_path / "a.jsonl", rows)), tmp_path)["item_id"].to_list()
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("text-")
    assert ids[3] == "77"


def movies(tmp_path, judged: str, **catalogue: str) -> Data:
    """Judgements of ids alone, as many public sets have them, and the items apart."""
    (tmp_path / "judged.tsv").write_text(judged)
    rows = [{"id": 7, "title": "old", "brand": "b"}, {"id": 7, "title": "Smile", "brand": "Acme"}, {"title": "no id"}]
    items = Source(path=str(write_jsonl(tmp_path / "items.jsonl", rows)), columns={"item_id": "id", **catalogue})
    source = Source(path=str(tmp_path / "judged.tsv"), columns={"item_id": "doc", "label": "grade"})
    return Data(sources=(source,), items=(items,), fields=("title", "brand"), max_bad_rows=0.3)


def test_judgements_of_ids_alone_take_their_items_from_the_files_of_items(tmp_path):
    config = movies(tmp_path, "query\tdoc\tgrade\tq\nsmile\t7\t1\tx\nsmile\t8\t0\tx\nsad\t7\t0\tx\nsad\t7\t0\tx\n")
    pairs = prepared(config, tmp_path)
    assert pairs.select("query", "item_id", "text", "label").rows() == [
        ("smile", "7", "Smile | Acme", 1.0),
        ("sad", "7", "Smile | Acme", 0.0),
    ]
    (rejected,) = map(orjson.loads, (tmp_path / "rejects.jsonl").read_bytes().splitlines())
    assert (rejected["line"], rejected["reason"]) == (3, "no title, and item_id '8' is in no file of data.items")
    assert read_judgements(config.sources, config).equals(pairs)


def test_a_rows_own_fields_come_before_those_of_the_items(tmp_path):
    (tmp_path / "judged.jsonl").write_bytes(
        b'{"query": "a", "item_id": 7, "title": "Mine", "label": 1}\n'
        b'{"query": "a", "item_id": 7, "brand": "Own", "label": 1}\n'
        b'{"query": "b", "title": "no id, which is no matter", "label": 1}\n'
    )
    items = movies(tmp_path, "").items
    config = Data(sources=(Source(path=str(tmp_path / "judged.jsonl")),), items=items, fields=("title", "brand"))
    assert prepared(config, tmp_path)["text"].to_list() == ["Mine", "Smile | Own", "no id, which is no matter"]


def test_judgements_without_titles_say_what_would_give_them(tmp_path):
    config = movies(tmp_path, "query\tdoc\tgrade\nsmile\t7\t1\n")
    told = refusal(config.model_copy(update={"items": ()}), tmp_path)
    assert (
        "no column 'title', only doc, grade, query; name the column that holds it with columns: {title: NAME}" in told
    )
    assert told.endswith("or the files that hold the items with data.items")
    (items,) = config.items
    without = config.model_copy(update={"items": (items.model_copy(update={"columns": {}}),)})
    assert "no title, and no item of data.items has an item_id" in refusal(without, tmp_path)
    unnamed = config.sources[0].model_copy(update={"columns": {"label": "grade"}})
    told = refusal(config.model_copy(update={"sources": (unnamed,)}), tmp_path)
    assert (
        "no column 'item_id', only doc, grade, query; name the column that holds it with columns: {item_id: NAME}"
        in told
    )


def test_further_items_join_those_that_were_judged(tmp_path):
    judged = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)])
    catalogue = [{"item_id": "i1", "title": "thing 1"}, {"item_id": "i9", "title": "thing 9", "brand": "B"}]
    items = (Source(path=str(write_jsonl(tmp_path / "items.jsonl", catalogue))),)
    summary = prepare(data_config(judged, items=items), tmp_path)
    assert pl.read_parquet(tmp_path / "items.parquet").rows() == [
        ("i1", "thing 1", "a"),
        ("i9", "thing 9 | B", "items"),
    ]
    assert summary["items"] == 2


@pytest.mark.parametrize("label", ["", "Sale!", None, 3])
def test_a_column_called_label_in_a_file_of_items_is_of_no_interest(tmp_path, label):
    judged = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)])
    catalogue = [{"item_id": "i9", "title": "thing 9", "label": label}]
    items = (Source(path=str(write_jsonl(tmp_path / "items.jsonl", catalogue))),)
    assert prepare(data_config(judged, items=items), tmp_path)["items"] == 2


@pytest.mark.parametrize(
    ("value", "kept"),
    [(7, 7), ("12", 12), ("", None), (None, None), ("often", None), ("²", None), (5.0, 5), (1e30, None)],
)
def test_a_frequency_is_a_whole_number_or_unknown(tmp_path, value, kept):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1, frequency=value)])
    assert prepared(data_config(path), tmp_path)["frequency"].to_list() == [kept]


def test_fields_that_no_item_has_are_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)])
    assert "data.fields" in refusal(data_config(path, fields=("colour", "size")), tmp_path)
    shop = Data(shop=Shop(items=50, queries=5, candidates=5), fields=("colour", "size"))
    assert "colour, size" in refusal(shop, tmp_path)


def test_a_shop_stands_in_for_files(tmp_path):
    summary = prepare(Data(shop=Shop(items=100, queries=30, candidates=6, seed=3)), tmp_path)
    pairs = pl.read_parquet(tmp_path / "pairs.parquet")
    assert summary["sources"] == [{"name": "shop", "rows": summary["pairs"] + summary["merged"], "rejected": 0}]
    assert set(pairs["source"]) == {"shop"}
    assert pairs["query_id"].n_unique() == 30
    assert set(pairs["pair_id"]) == {pair_id(row["query"], row["text"]) for row in pairs.to_dicts()}
    split_of(pairs)


def test_a_file_to_evaluate_on_is_read_alone(tmp_path):
    rows = [judgement("drill", 1, 1, split="test"), judgement("drill", 2, 0), judgement("lamp", 2, "x")]
    source = Source(path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    pairs = read_judgements([source], Data(shop=Shop(), max_bad_rows=0.5), tmp_path / "rejects.jsonl")
    assert pairs["item_id"].to_list() == ["i1", "i2"]
    assert set(pairs["split"]) == {"test"}
    assert len((tmp_path / "rejects.jsonl").read_bytes().splitlines()) == 1
    with pytest.raises(DataError, match="--judgements"):
        read_judgements([source], Data(shop=Shop()))


def test_rows_from_elsewhere_become_pairs_too():
    frame = with_item_text(pl.DataFrame({"title": [" a  b", None], "item_id": ["x", None]}), ("title", "brand"))
    assert frame["text"].to_list() == ["a b", ""]
    assert frame["item_id"][1].startswith("text-")


def pairs_of(*rows: tuple[str, str, float | None]) -> pl.DataFrame:
    """Pairs whose pair_id is QUERY-ITEM."""
    return pl.DataFrame(
        [
            {"pair_id": f"{q}-{i}", "query_id": q, "query": f"query {q}", "item_id": i, "text": f"t{i}", "label": y}
            for q, i, y in rows
        ],
        schema_overrides={"label": pl.Float32},
    )


def test_lists_join_soft_labels_and_keep_the_order():
    pairs = pairs_of(("b", "2", 1.0), ("a", "1", None), ("b", "1", 0.0), ("a", "9", 3.0))
    labels = pl.DataFrame(
        {"pair_id": ["a-1", "zzz", "b-1", "b-2"], "score": [0.25, 9.0, -4.0, 1.5], "logits": [[1.0, 2.0], *[None] * 3]},
        schema_overrides={"score": pl.Float32},
    )
    table = build_lists(pairs, labels)
    assert table.schema.equals(LISTS)
    assert table.to_pylist() == [
        {
            "query_id": "b",
            "query": "query b",
            "items": [
                {"item_id": "2", "text": "t2", "label": 1.0, "score": 1.5, "logits": None, "clicks": None},
                {"item_id": "1", "text": "t1", "label": 0.0, "score": -4.0, "logits": None, "clicks": None},
            ],
        },
        {
            "query_id": "a",
            "query": "query a",
            "items": [
                {"item_id": "1", "text": "t1", "label": None, "score": 0.25, "logits": [1.0, 2.0], "clicks": None},
                {"item_id": "9", "text": "t9", "label": 3.0, "score": None, "logits": None, "clicks": None},
            ],
        },
    ]


def test_lists_without_soft_labels():
    items = build_lists(pairs_of(("a", "1", 1.0)), None).to_pylist()[0]["items"]
    assert items == [{"item_id": "1", "text": "t1", "label": 1.0, "score": None, "logits": None, "clicks": None}]


def test_the_fingerprint_follows_files_and_settings(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)])
    config = data_config(path)
    before = fingerprint_data(config)
    assert fingerprint_data(config) == before
    assert fingerprint_data(data_config(path, test=0.3)) != before
    write_jsonl(path, [judgement("drill", 1, 2)])
    changed = fingerprint_data(config)
    assert changed != before
    items = write_jsonl(tmp_path / "items.jsonl", [{"title": "x"}])
    with_items = data_config(path, items=(Source(path=str(items)),))
    first = fingerprint_data(with_items)
    write_jsonl(items, [{"title": "y"}])
    assert len({changed, first, fingerprint_data(with_items)}) == 3


def test_the_fingerprint_of_a_shop_follows_its_seed():
    assert fingerprint_data(Data(shop=Shop(seed=1))) == fingerprint_data(Data(shop=Shop(seed=1)))
    assert fingerprint_data(Data(shop=Shop(seed=1))) != fingerprint_data(Data(shop=Shop(seed=2)))


def test_assembling_counts_merged_rows():
    frame = pl.DataFrame(
        [{**judgement("drill", item, 1.0), "split": None, "source": "s", "frequency": None} for item in (1, 1, 2)],
        schema_overrides={"split": pl.String, "frequency": pl.Int64},
    )
    pairs, merged, _ = assemble_pairs(frame, Data(shop=Shop()))
    assert (pairs.height, merged) == (2, 1)
    assert pairs.columns == PAIRS.names


@pytest.mark.parametrize(("scale", "reason"), [(20.0, "over 30"), (1e-12, "under 1e-09")])
def test_a_label_whose_gain_overflows_or_vanishes_is_rejected_after_scaling(tmp_path, scale, reason):
    rows = [judgement("drill", number, 3) for number in range(5)]
    source = Source(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), label_scale=scale)
    with pytest.raises(DataError, match=reason):
        prepare(Data(sources=(source,)), tmp_path)


def test_mapped_columns_must_be_known_and_there(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1)])
    unknown = refusal(Data(sources=(Source(path=str(path), columns={"titel": "title"}),)), tmp_path)
    assert "data.sources.0.columns has 'titel'" in unknown
    absent = refusal(Data(sources=(Source(path=str(path), columns={"brand": "maker"}),)), tmp_path)
    assert "no column 'maker'" in absent


@pytest.mark.parametrize("title", [["a drill"], {"en": "drill"}])
def test_what_is_no_text_is_rejected(tmp_path, title):
    path = write_jsonl(tmp_path / "a.jsonl", [judgement("drill", 1, 1, title=title)])
    assert f"title is {type(title).__name__}, not text" in refusal(data_config(path), tmp_path)


def test_a_file_behind_a_broken_link_is_named(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"a\.jsonl: can't be read"):
        fingerprint_data(data_config(tmp_path / "rows"))
