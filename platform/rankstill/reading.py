"""Rows of JSONL, CSV, TSV and Parquet files, folders of them, here or at any fsspec URL."""

import csv
import hashlib
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from rankstill.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of an input file. `problem` says why it could not be parsed, in which case `values` is empty."""

    file: str
    line: int
    values: dict[str, Any]
    problem: str = ""


def list_files(path: str, field: str) -> list[str]:
    """The readable files behind a path, a folder or a URL, sorted.

    Raises:
        DataError: nothing is there, or nothing of a known format.
    """
    if not path:
        raise DataError(f"{field}: the path is empty; give a file, a folder or a URL")
    try:
        filesystem, root = fsspec.url_to_fs(path)
        there = filesystem.exists(root)
        found = sorted(filesystem.find(root)) if filesystem.isdir(root) else [root]
    except (ImportError, OSError, ValueError) as error:
        raise DataError(
            f"{field}: {path!r} can't be opened ({error}); check the address, and install what its protocol needs"
        ) from error
    if not there:
        raise DataError(f"{field}: no such file or folder {path!r}; check the path")
    files = [filesystem.unstrip_protocol(name) for name in found if name.endswith(SUFFIXES)]
    if not files:
        raise DataError(f"{field}: {path!r} holds no file of a known format; use one of {', '.join(SUFFIXES)}")
    return files


def fingerprint_files(files: list[str]) -> str:
    """Hash of the contents of local files, or of what their store says of remote ones (size, time, tag).

    Raises:
        DataError: a file can't be read.
    """
    state = hashlib.blake2b(digest_size=16)
    for file in files:
        filesystem, name = fsspec.url_to_fs(file)
        if "file" in filesystem.protocol:
            try:
                with filesystem.open(name, "rb") as stream:
                    while chunk := stream.read(1 << 22):
                        state.update(chunk)
            except OSError as error:
                raise DataError(f"{name}: can't be read ({error.strerror}); check the file and its rights") from error
        else:
            state.update(f"{file}\0{filesystem.ukey(name)}\0".encode())
    return state.hexdigest()


def read_rows(file: str) -> Iterator[Row]:
    """Every row of one file with its line number (Parquet: row number), malformed ones included.

    Raises:
        DataError: the file as a whole can't be read.
    """
    name = file.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _read_parquet(file)
        else:
            opened: Any = fsspec.open(file, "rt", compression="infer", encoding="utf-8-sig", newline="")
            with opened as stream:
                if name.endswith(".jsonl"):
                    yield from _read_jsonl(file, stream)
                else:
                    lines = _tsv_lines(stream) if name.endswith(".tsv") else _csv_lines(file, stream)
                    yield from _read_table(file, lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{short_name(file)}: is not UTF-8 ({error.reason}); convert it") from error
    except (OSError, EOFError, OverflowError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{short_name(file)}: can't be read ({error}); check that it is whole") from error


def short_name(file: str) -> str:
    """The last part of a path or URL."""
    return PurePosixPath(file).name


def _read_jsonl(file: str, stream: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            hint = "; JSON has no NaN, write null" if "NaN" in line else ""
            yield Row(file, number, {}, f"not valid JSON ({error.msg}{hint})")
            continue
        if isinstance(values, dict):
            yield Row(file, number, values)
        else:
            yield Row(file, number, {}, "not a JSON object")


def _read_table(file: str, lines: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    """Rows of lines with their numbers, the first of which is the header."""
    _, header = next(lines, (0, []))
    for name in filter(None, header):
        if (count := header.count(name)) > 1:
            raise DataError(f"{short_name(file)}: column {name!r} is there {count} times; rename all but one")
    for number, cells in lines:
        if len(cells) == len(header):
            yield Row(file, number, dict(zip(header, cells, strict=True)))
        else:
            yield Row(file, number, {}, f"has {len(cells)} cells where the header has {len(header)}")


def _csv_lines(file: str, stream: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row that isn't empty; a quoted one may go over several lines.

    Strict: with a quote that isn't closed a cell would hold all rows up to the next one.
    """
    csv.field_size_limit(1 << 27)
    reader, last = csv.reader(stream, strict=True), 0
    try:
        for cells in reader:
            number, last = last + 1, reader.line_num
            if cells:
                yield number, cells
    except csv.Error as error:
        raise DataError(
            f"{short_name(file)}: the row at line {last + 1} has a quote too many or too few ({error} at line"
            f" {reader.line_num}); a cell that begins with a quote ends with one, and those within are doubled"
        ) from error


def _tsv_lines(stream: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Cells of each line that isn't empty. Quotes are text, but around a whole cell in which others are doubled.

    Such a cell may go over several lines, where these together have as many cells as the header; otherwise a quote that
    isn't closed is text, too.
    """
    lines, ahead, width = enumerate(stream, start=1), deque[tuple[int, str]](), 0
    while one := ahead.popleft() if ahead else next(lines, None):
        number, text = one[0], one[1].rstrip("\r\n")
        if not text:
            continue
        cells, joined, taken = text.split("\t"), text, []
        while len(cells) <= width and _is_open(cells[-1]):
            more = ahead.popleft() if ahead else next(lines, None)
            if more is None:
                break
            taken.append(more)
            joined += "\n" + more[1].rstrip("\r\n")
            cells = joined.split("\t")
        if taken and (len(cells) != width or _is_open(cells[-1])):
            ahead.extendleft(reversed(taken))
            cells = text.split("\t")
        width = width or len(cells)
        yield number, [_unquoted(cell) for cell in cells]


def _is_open(cell: str) -> bool:
    """Whether a cell begins with a quote that isn't closed."""
    return cell.startswith('"') and '"' not in cell[1:].replace('""', "")


def _unquoted(cell: str) -> str:
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _read_parquet(file: str) -> Iterator[Row]:
    filesystem, name = fsspec.url_to_fs(file)
    with filesystem.open(name, "rb") as stream:
        number = 0
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=65_536):
            for values in batch.to_pylist():
                number += 1
                yield Row(file, number, values)
