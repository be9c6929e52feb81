"""Token ids of the pairs of a file, made once by whoever comes first and mapped into memory by all others."""

import hashlib
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from rankstill.cross_encoder import CrossEncoder, TokenisedPairs
from rankstill.storage import written_aside
from rankstill.text import digest

CHECK = b"crc32"
"""Under which the checksum of the ids is in the file's schema."""


def kept_tokens(path: Path, encoder: CrossEncoder, tokenise: Callable[[], TokenisedPairs]) -> TokenisedPairs:
    """The tokens of all pairs of the file `path`, which `tokenise` gives where they aren't kept beside it.

    They are kept for the file's content, the tokenizer and the length; a kept file that is damaged is made again.
    """
    with path.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    name = digest(content, encoder.tokenizer.backend_tokenizer.to_str(), str(encoder.max_length), size=8)
    kept = path.with_name(f"{path.stem}-{name}.tokens")
    batch = _opened(kept)
    if batch is None:
        made = _as_batch(tokenise())
        made = made.replace_schema_metadata({CHECK: str(_check(made))})
        with written_aside(kept) as aside, pa.ipc.new_file(str(aside), made.schema) as out:
            out.write_batch(made)
        batch = _opened(kept) or made
    return _as_pairs(batch)


def _opened(kept: Path) -> pa.RecordBatch | None:
    """What a file keeps; None where it isn't there, or isn't what was written."""
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(kept))).get_batch(0)
        batch.validate()
    except (OSError, pa.ArrowException):
        return None
    return batch if (batch.schema.metadata or {}).get(CHECK) == str(_check(batch)).encode() else None


def _check(batch: pa.RecordBatch) -> int:
    lists = [part for name in ("input_ids", "segment_ids") for part in (batch[name].offsets, batch[name].values)]
    found = 0
    for part in (*lists, batch["truncated"]):
        found = zlib.crc32(np.ascontiguousarray(part.to_numpy()).data, found)
    return found


def _as_batch(pairs: TokenisedPairs) -> pa.RecordBatch:
    ends = np.concatenate([[0], np.cumsum(pairs.lengths_B)])
    columns = {
        name: pa.LargeListArray.from_arrays(ends, np.concatenate([np.empty(0, np.int32), *parts]))
        for name, parts in (("input_ids", pairs.input_ids), ("segment_ids", pairs.segment_ids))
    }
    return pa.record_batch({**columns, "truncated": pa.array(pairs.truncated.astype(np.uint8))})


def _as_pairs(batch: pa.RecordBatch) -> TokenisedPairs:
    parts = {}
    for name in ("input_ids", "segment_ids"):
        values, ends = batch[name].values.to_numpy(), batch[name].offsets.to_numpy().tolist()
        parts[name] = [values[start:end] for start, end in pairwise(ends)]
    return TokenisedPairs(**parts, truncated=batch["truncated"].to_numpy().astype(np.bool_))
