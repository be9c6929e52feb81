"""Token ids of the pairs of a file, made once by whoever comes first and mapped into memory by all others."""

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from rankstill.cross_encoder import CrossEncoder, TokenisedPairs
from rankstill.storage import written_aside
from rankstill.text import digest


def kept_tokens(path: Path, encoder: CrossEncoder, tokenise: Callable[[], TokenisedPairs]) -> TokenisedPairs:
    """The tokens of all pairs of the file `path`, which `tokenise` gives where they aren't kept beside it.

    They are kept for the file's content, the tokenizer and the length.
    """
    with path.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    name = digest(content, encoder.tokenizer.backend_tokenizer.to_str(), str(encoder.max_length), size=8)
    kept = path.with_name(f"{path.stem}-{name}.tokens")
    if not kept.is_file():
        batch = _as_batch(tokenise())
        with written_aside(kept) as aside, pa.ipc.new_file(str(aside), batch.schema) as out:
            out.write_batch(batch)
    return _as_pairs(pa.ipc.open_file(pa.memory_map(str(kept))).get_batch(0))


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
