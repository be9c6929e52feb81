"""Item vectors made ahead of time: int8 with scales, memory-mapped, updated item by item.

vectors.i8          rows of M x W bytes
scales.f32          rows of M float32: vector = bytes * scale
items-*.parquet     item_id, text digest and row of each item
manifest.json       which student made the vectors, their shape, the rows that count, the items file

Rows are only ever appended, and the manifest is replaced last: a reader keeps what it opened, and an update that is cut
short changes nothing. Rows of items that changed or went stay behind until `compact`.

Axes: B items, M vectors of an item, W their width, S tokens of a query.
"""

import json
import threading
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from rankstill.bi_encoder import BiEncoder
from rankstill.cross_encoder import CrossEncoder, TokenisedPairs, collate
from rankstill.errors import ConfigError, ConversionError, ModelError
from rankstill.runtimes import Batch, Floats
from rankstill.scoring import plan_batches
from rankstill.storage import make_parent, write_json
from rankstill.text import digest
from rankstill.towers import TowerModel

MANIFEST = "manifest.json"
FORMAT = 1
Bytes = NDArray[np.int8]


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of B items: bytes [B, M, W] and scales [B, M]."""

    bytes_BMW: Bytes
    scales_BM: Floats

    @property
    def floats(self) -> Floats:
        """[B, M, W]."""
        return self.bytes_BMW.astype(np.float32) * self.scales_BM[..., None]


class ItemIndex:
    """An index as it was when it was opened."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.items = pl.read_parquet(folder / manifest["items"])
        """item_id, digest (of the text) and row of each item."""

    @property
    def student(self) -> str:
        """Hash of the weights of the student that made the vectors."""
        return self.manifest["student"]

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each item; -1 where the index doesn't have it."""
        return np.fromiter((self._row_of.get(one, -1) for one in ids), dtype=np.int64, count=len(ids))

    def vectors(self, rows_B: NDArray[np.int64]) -> ItemVectors:
        """Copies of the vectors at these rows."""
        return ItemVectors(self._bytes[rows_B], self._scales[rows_B])

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return dict(zip(self.items["item_id"], self.items["row"], strict=True))

    @cached_property
    def _bytes(self) -> Bytes:
        shape = (self.manifest["rows"], self.manifest["vectors"], self.manifest["width"])
        return np.memmap(self.folder / "vectors.i8", dtype=np.int8, mode="r", shape=shape)

    @cached_property
    def _scales(self) -> Floats:
        shape = (self.manifest["rows"], self.manifest["vectors"])
        return np.memmap(self.folder / "scales.f32", dtype=np.float32, mode="r", shape=shape)


def open_index(folder: Path, field: str, student: str = "") -> ItemIndex:
    """Open an index; `student`, where given, is the hash of the weights that it has to come from.

    Raises:
        ModelError: no whole index there, or one of another student.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rows, vectors, width = (int(manifest[name]) for name in ("rows", "vectors", "width"))
        sizes = [(folder / name).stat().st_size for name in ("vectors.i8", "scales.f32")]
        whole = sizes[0] >= rows * vectors * width and sizes[1] >= 4 * rows * vectors
        whole = whole and manifest["format"] == FORMAT
        index, made_by = ItemIndex(folder, manifest), str(manifest["student"])
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise ModelError(
            f"{field}: {str(folder)!r} has no readable item index; make it again with jobs.index"
        ) from error
    if not whole:
        raise ModelError(f"{field}: the item index {str(folder)!r} is cut short or of another format; make it again")
    if student and made_by != student:
        raise ModelError(
            f"{field}: the item index {str(folder)!r} comes from the student {made_by[:12]}…, not from {student[:12]}…;"
            " index the items with this one"
        )
    return index


def create_index(folder: Path, field: str, student: str, model: TowerModel, fields: Iterable[str]) -> ItemIndex:
    """An index without items, in a new or empty folder.

    Raises:
        ConfigError: something else is there.
    """
    started = {"vectors.i8", "scales.f32"}  # as far as one gets that is killed here
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= started):
        raise ConfigError(f"{field}: {str(folder)!r} is there already and no item index; give a new folder")
    make_parent(folder / MANIFEST, field)
    for name in ("vectors.i8", "scales.f32"):
        (folder / name).touch()
    width = model.config.width or model.config.encoder_config.hidden_size
    manifest = {"format": FORMAT, "student": student, "vectors": model.config.vectors, "width": width, "rows": 0}
    empty = pl.DataFrame(schema={"item_id": pl.String, "digest": pl.String, "row": pl.Int64})
    return _commit(folder, {**manifest, "fields": list(fields)}, empty)


def missing_items(index: ItemIndex, items: pl.DataFrame) -> pl.DataFrame:
    """The items (item_id, text) that the index lacks, or has with another text; with their `digest`."""
    hashed = items.with_columns(digest=pl.Series([digest(text) for text in items["text"]], dtype=pl.String))
    return hashed.join(index.items, on=["item_id", "digest"], how="anti")


def append_items(index: ItemIndex, items: pl.DataFrame, blocks: Iterable[ItemVectors]) -> ItemIndex:
    """Add or replace items (item_id, digest; in the order of the blocks); returns the index with them."""
    shape = (index.manifest["vectors"], index.manifest["width"])
    rows = index.manifest["rows"]
    with (index.folder / "vectors.i8").open("r+b") as vectors, (index.folder / "scales.f32").open("r+b") as scales:
        vectors.seek(rows * shape[0] * shape[1])  # over what an update left that was cut short
        scales.seek(4 * rows * shape[0])
        for block in blocks:
            vectors.write(np.ascontiguousarray(block.bytes_BMW).data)
            scales.write(np.ascontiguousarray(block.scales_BM).data)
    added = items.select("item_id", "digest").with_row_index("row", rows).with_columns(pl.col("row").cast(pl.Int64))
    added = added.unique("item_id", keep="last", maintain_order=True)
    kept = index.items.join(added, on="item_id", how="anti")
    merged = pl.concat([kept, added.select(kept.columns)])
    return _commit(index.folder, {**index.manifest, "rows": rows + items.height}, merged)


def remove_items(index: ItemIndex, ids: Iterable[str]) -> ItemIndex:
    """The index without these items."""
    return _commit(index.folder, index.manifest, index.items.filter(~pl.col("item_id").is_in(list(ids))))


def compact(index: ItemIndex, folder: Path) -> ItemIndex:
    """A copy in a new folder without the rows that no item has any more."""
    folder.mkdir(parents=True)
    live = index.items.sort("row")
    for name in ("vectors.i8", "scales.f32"):
        (folder / name).touch()
    copy = _commit(folder, {**index.manifest, "rows": 0}, index.items.clear())
    blocks = (index.vectors(block["row"].to_numpy()) for block in live.iter_slices(10_000))
    return append_items(copy, live, blocks)


def quantise(vectors_BMW: Floats) -> ItemVectors:
    """Each vector as int8 with the scale that its largest number needs."""
    scales_BM = np.abs(vectors_BMW).max(axis=-1) / 127.0
    safe_BM1 = np.maximum(scales_BM, 1e-12)[..., None]
    return ItemVectors(np.rint(vectors_BMW / safe_BM1).astype(np.int8), scales_BM.astype(np.float32))


class ItemEncoder:
    """The two towers of a student: encodes queries and items apart, and compares them."""

    def __init__(self, student: CrossEncoder) -> None:
        """In torch. Raises ConfigError for a cross-encoder."""
        self._model = tower_of(student)
        self._student = student
        self._encoder = BiEncoder(self._model.encoder, student.tokenizer, "mean", student.max_length)
        self._tokenising = threading.Lock()  # tokenizers hold the length to cut at

    @classmethod
    def fast(cls, student: CrossEncoder, threads: int) -> "ItemEncoder":
        """In OpenVINO, or in torch where OpenVINO can't run the student's encoder. Raises as without."""
        made = cls(student)
        with suppress(ConversionError):
            made._encoder = made._encoder.in_openvino(threads, "float32")
        return made

    def tokenise(self, texts: Sequence[str], max_length: int | None = None) -> TokenisedPairs:
        """Token ids of queries or items by themselves, cut at the student's length or a shorter one."""
        if not texts:
            return TokenisedPairs([], [], np.zeros(0, dtype=np.bool_))
        limit = min(max_length or self._student.max_length, self._student.max_length)
        with self._tokenising:
            encoded = self._student.tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)
        ids = [np.array(one, dtype=np.int32) for one in encoded["input_ids"]]
        truncated = [bool(one.overflowing) for one in encoded.encodings or []]
        return TokenisedPairs(ids, [np.zeros_like(one) for one in ids], np.array(truncated, dtype=np.bool_))

    def items(self, tokens: TokenisedPairs, token_budget: int) -> Floats:
        """Vectors of items, [B, M, W], as a pair's item would be encoded."""
        parts = []
        batches = plan_batches(tokens.lengths_B, token_budget)
        for rows in batches:
            batch = collate(tokens, rows.tolist(), self._student.pad_id)
            with torch.inference_mode():
                parts.append(self._model.pool_items(*self._states(batch)).numpy())
        return np.concatenate(parts)[np.argsort(np.concatenate(batches))]

    def encode(self, texts: Sequence[str], token_budget: int = 4096) -> ItemVectors:
        """Vectors of item texts, [B], as an index keeps them."""
        return quantise(self.items(self.tokenise(texts), token_budget))

    def queries(self, tokens: TokenisedPairs) -> Floats:
        """Vectors of queries, and in a last column the weights with which these count, [B, S, W + 1]."""
        batch = collate(tokens, range(len(tokens.input_ids)), self._student.pad_id)
        with torch.inference_mode():
            vectors_BSW, weights_BS = self._model.pool_queries(*self._states(batch))
            return torch.cat([vectors_BSW, weights_BS.unsqueeze(-1)], dim=-1).numpy()

    def compare(self, query_SV: Floats, vectors_BMW: Floats) -> Floats:
        """Logits of items for one of the queries, [B]."""
        query = torch.from_numpy(query_SV).unsqueeze(0)
        with torch.inference_mode():
            return self._model.compare(query[..., :-1], query[..., -1], torch.from_numpy(vectors_BMW)).numpy()

    def _states(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, L, D] and which of them are real [B, L]."""
        inputs = {name: torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask")}
        return self._encoder.hidden(inputs), inputs["attention_mask"].bool()


class KnownItemScorer:
    """Scores items whose vectors are known: one short query to encode, then comparisons."""

    def __init__(self, encoder: ItemEncoder, index: ItemIndex) -> None:
        self._encoder, self._index = encoder, index

    def score(self, query: str, ids: Sequence[str]) -> Floats:
        """Logits of known items, [B]; NaN where the index doesn't have one."""
        rows_B = self._index.rows(ids)
        scores_B = np.full(len(ids), np.nan, dtype=np.float32)
        known_B = rows_B >= 0
        if known_B.any():
            (query_SV,) = self._encoder.queries(self._encoder.tokenise([query]))
            scores_B[known_B] = self._encoder.compare(query_SV, self._index.vectors(rows_B[known_B]).floats)
        return scores_B


def tower_of(student: CrossEncoder, named: str = "the student") -> TowerModel:
    """The model of a student that encodes items by themselves.

    Raises:
        ConfigError: a cross-encoder, which doesn't.
    """
    if not isinstance(student.model, TowerModel):
        raise ConfigError(f"{named} is of family cross, which has no item vectors; take one of family bi or late")
    return student.model.eval()


def _commit(folder: Path, manifest: dict[str, Any], items: pl.DataFrame) -> ItemIndex:
    """Replace the items and then, which makes it count, the manifest."""
    before = manifest.get("items")
    name = f"items-{uuid.uuid4().hex[:12]}.parquet"
    items.write_parquet(folder / name)
    manifest = {**manifest, "items": name, "count": items.height}
    write_json(folder / MANIFEST, manifest)
    if before and (folder / before).exists():
        (folder / before).unlink()
    return ItemIndex(folder, manifest)
