import csv
import gzip
import itertools

import fsspec
import polars as pl
import pytest
from builders import judgement, write_jsonl

from rankstill.errors import DataError
from rankstill.reading import Row, fingerprint_files, list_files, read_rows, short_name

ROWS = [judgement("drill", 1, 3.0), judgement("größe", 2, 0.5, brand="Käthe")]
MEMORY_NAMES = itertools.count()


def read(path) -> list[Row]:
    return [row for file in list_files(str(path), "data.sources.0.path") for row in read_rows(file)]


def refusal(path) -> str:
    """The one line with which a path is refused."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    rows = read(write_jsonl(tmp_path / name, ROWS))
    assert [row.values for row in rows] == ROWS
    assert [(short_name(row.file), row.line, row.problem) for row in rows] == [(name, 1, ""), (name, 2, "")]


def test_json_lines_with_a_byte_order_mark_and_blank_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "a"}\r\n\r\n  \n{"query": "b"}')
    assert [(row.line, row.values) for row in read(path)] == [(1, {"query": "a"}), (4, {"query": "b"})]


def test_malformed_json_lines_are_rows_with_a_problem(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": \n[1]\n{"query": "b"}\n{"label": NaN}\n')
    rows = read(path)
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert [bool(row.problem) for row in rows] == [True, True, False, True]
    assert "not valid JSON" in rows[0].problem
    assert rows[1].problem == "not a JSON object"


def test_csv_with_quoted_newlines_counts_lines_as_an_editor_does(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('query,title,label\r\ndrill,"two\nlines, ""quoted""",3\r\n\r\nlamp,one,1\n', newline="")
    first, second = read(path)
    assert first.values == {"query": "drill", "title": 'two\nlines, "quoted"', "label": "3"}
    assert first.line == 2
    assert second.values["query"] == "lamp"
    assert second.line == 5


def test_a_csv_row_of_another_width_is_a_problem(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("query,title,label\na,b\nc,d,1\ne,f,1,2\n")
    rows = read(path)
    assert [row.problem for row in rows] == [
        "has 2 cells where the header has 3",
        "",
        "has 4 cells where the header has 3",
    ]
    assert [row.line for row in rows] == [2, 3, 4]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz"])
def test_delimited_text(tmp_path, name):
    separator = "\t" if "tsv" in name else ","
    text = f"query{separator}title\nwide lamp{separator}größe\n"
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [row.values for row in read(tmp_path / name)] == [{"query": "wide lamp", "title": "größe"}]


def test_a_cell_longer_than_pythons_default_limit(tmp_path):
    assert csv.field_size_limit() > 0
    path = tmp_path / "a.csv"
    path.write_text(f"query,title\nx,{'y' * 200_000}\n")
    assert len(read(path)[0].values["title"]) == 200_000


def test_parquet(tmp_path):
    pl.DataFrame({"query": ["a", "b"], "label": [1, None], "tags": [["x"], []]}).write_parquet(tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [row.values for row in rows] == [
        {"query": "a", "label": 1, "tags": ["x"]},
        {"query": "b", "label": None, "tags": []},
    ]
    assert [row.line for row in rows] == [1, 2]


def test_a_folder_of_mixed_files_is_read_in_order_of_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"query": "second"}])
    (tmp_path / "a.csv").write_text("query\nfirst\n")
    (tmp_path / "deeper").mkdir()
    pl.DataFrame({"query": ["third"]}).write_parquet(tmp_path / "deeper" / "c.parquet")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "_SUCCESS").write_text("")
    assert [row.values["query"] for row in read(tmp_path)] == ["first", "second", "third"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_url(tmp_path, name):
    local = tmp_path / name
    if name.endswith(".parquet"):
        pl.DataFrame(ROWS).write_parquet(local)
    else:
        write_jsonl(local, ROWS)
    url = f"memory://reading-{next(MEMORY_NAMES)}/{name}"
    with fsspec.open(url, "wb") as stream:
        stream.write(local.read_bytes())
    assert [row.values["query"] for row in read(url)] == ["drill", "größe"]
    assert [row.values["query"] for row in read(url.rpartition("/")[0])] == ["drill", "größe"], "the folder of it"


def test_a_path_with_blanks_and_marks(tmp_path):
    path = write_jsonl(tmp_path / "my judgements #1 [50%20].jsonl", ROWS)
    assert len(read(path)) == 2


def test_what_is_not_there_is_named(tmp_path):
    for path in (str(tmp_path / "absent.jsonl"), "memory://nowhere/absent.jsonl"):
        message = refusal(path)
        assert message.startswith("data.sources.0.path: no such file")
        assert path in message


def test_no_path_is_not_the_folder_one_stands_in(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert refusal("") == "data.sources.0.path: the path is empty; give a file, a folder or a URL"


def test_a_file_of_an_unknown_format_is_named_with_the_known_ones(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    for path in (tmp_path / "a.xlsx", tmp_path):
        message = refusal(path)
        assert str(path) in message
        assert ".parquet" in message


def test_an_unknown_protocol_is_named():
    assert "'nope://bucket/a.jsonl'" in refusal("nope://bucket/a.jsonl")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b'{"query": "caf\xe9"}\n', "not UTF-8"),
        ("a.csv", b"query,title\ncaf\xe9,b\n", "not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"query": "a"}\n' * 50, mtime=0)[:-12], "can't be read"),
        ("a.jsonl.gz", b"not gzip at all", "can't be read"),
        ("a.parquet", b"PAR1 not really", "can't be read"),
        ("a.parquet", b"", "can't be read"),
    ],
)
def test_a_file_that_is_damaged_is_named(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path / name)
    assert message.startswith(name)
    assert reason in message


def test_a_compressed_file_with_damaged_bytes_inside_is_named(tmp_path):
    data = bytearray(gzip.compress(bytes(range(256)) * 400))
    data[12:40] = b"\xff" * 28
    (tmp_path / "a.csv.gz").write_bytes(data)
    assert refusal(tmp_path / "a.csv.gz").startswith("a.csv.gz")


def test_a_cut_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"query": ["a"] * 1000}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).startswith("a.parquet")


def test_an_empty_file_has_no_rows(tmp_path):
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text("")
        assert read(tmp_path / name) == []


def test_a_fingerprint_follows_the_content_of_local_files(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    before = fingerprint_files([str(path)])
    assert fingerprint_files([str(write_jsonl(tmp_path / "copy.jsonl", ROWS))]) == before
    path.write_bytes(path.read_bytes().replace(b"3.0", b"2.0"))
    assert fingerprint_files([str(path)]) != before


def test_a_fingerprint_follows_remote_files_of_the_same_size():
    url = f"memory://reading-{next(MEMORY_NAMES)}/a.jsonl"
    found = set()
    for label in (b"1", b"2"):
        with fsspec.open(url, "wb") as stream:
            stream.write(b'{"label": ' + label + b"}\n")
        found.add(fingerprint_files([url]))
    assert len(found) == 2


def cells(tmp_path, name: str, text: str) -> list[list[str]]:
    path = tmp_path / name
    path.write_text(text, newline="")
    return [list(row.values.values()) if not row.problem else [row.problem] for row in read_rows(str(path))]


def test_quotes_in_tsv_are_text_but_around_a_cell(tmp_path):
    text = (
        'query\ttitle\tlabel\nlamp\t"Best lamp\t1\ntv\t32" screen\t2\nlamp\t"Worst lamp\t0\nlamp\t"a ""good"" one"\t3\n'
    )
    assert cells(tmp_path, "a.tsv", text) == [
        ["lamp", '"Best lamp', "1"],
        ["tv", '32" screen', "2"],
        ["lamp", '"Worst lamp', "0"],
        ["lamp", 'a "good" one', "3"],
    ]
    last = 'query\tlabel\ttitle\nlamp\t1\t"Best lamp\nlamp\t2\tSecond\ntv\t2\t32"\nlamp\t0\t"Worst lamp'
    assert [row[2] for row in cells(tmp_path, "b.tsv", last)] == ['"Best lamp', "Second", '32"', '"Worst lamp']


def test_a_quoted_cell_of_tsv_may_go_over_lines(tmp_path):
    text = 'query\ttitle\tlabel\r\nlamp\t"two\r\nlines, ""quoted"""\t1\r\n\r\nlamp\tone\t2\r\n'
    path = tmp_path / "a.tsv"
    path.write_text(text, newline="")
    rows = list(read_rows(str(path)))
    assert [(row.line, row.values["title"]) for row in rows] == [(2, 'two\nlines, "quoted"'), (5, "one")]


def test_a_quote_that_swallows_rows_of_csv_is_an_error(tmp_path):
    text = 'query,title,label\nlamp,"Best lamp,1\nlamp,other,2\nlamp,"Worst lamp,0\n'
    with pytest.raises(DataError, match=r"a.csv: the row at line 2 has a quote too many or too few \(.* at line 4\)"):
        cells(tmp_path, "a.csv", text)
    with pytest.raises(DataError, match="the row at line 3 has a quote too many"):
        cells(tmp_path, "b.csv", 'query,title,label\ntv,32" screen,1\nlamp,"Best lamp,1\n')


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, name):
    text = "query,title,label,title,,\nlamp,Lamp,1,x,,\n"
    with pytest.raises(DataError, match=f"{name}: column 'title' is there 2 times; rename all but one"):
        cells(tmp_path, name, text.replace(",", "\t") if name == "a.tsv" else text)


def test_nan_in_json_is_named(tmp_path):
    assert "JSON has no NaN, write null" in cells(tmp_path, "a.jsonl", '{"query": "lamp", "label": NaN}\n')[0][0]
