from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_cross_encoder

from rankstill.cross_encoder import CrossEncoder, TokenisedPairs
from rankstill.token_files import kept_tokens

QUERIES, TEXTS = ["drill", "lamp", ""], ["red drill", "steel lamp small " * 30, "oak"]


@pytest.fixture(scope="module")
def encoder() -> CrossEncoder:
    return tiny_cross_encoder(layers=1)


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "lists.parquet").write_bytes(b"any content")
    return tmp_path / "lists.parquet"


def as_plain(pairs: TokenisedPairs) -> list[list]:
    tokens = [[ids.tolist() for ids in part] for part in (pairs.input_ids, pairs.segment_ids)]
    return [*tokens, pairs.truncated.tolist()]


def test_what_is_kept_is_what_the_tokenizer_said(encoder, path):
    said = encoder.tokenise(QUERIES, TEXTS)
    assert said.truncated.tolist() == [False, True, False]
    for _ in range(2):
        kept = kept_tokens(path, encoder, lambda: said)
        assert as_plain(kept) == as_plain(said)
        assert kept.lengths_B.tolist() == said.lengths_B.tolist()


def test_the_tokenizer_is_asked_once(encoder, path):
    asked = []

    def tokenise() -> TokenisedPairs:
        asked.append(1)
        return encoder.tokenise(QUERIES, TEXTS)

    kept_tokens(path, encoder, tokenise)
    kept_tokens(path, encoder, tokenise)
    assert len(asked) == 1
    kept_tokens(path, replace(encoder, max_length=8), tokenise)
    assert len(asked) == 2
    path.write_bytes(b"other content")
    kept_tokens(path, encoder, tokenise)
    assert len(asked) == 3
    other = tiny_cross_encoder(layers=1)
    other.tokenizer.add_tokens(["drill"])
    kept_tokens(path, other, tokenise)
    assert len(asked) == 4


def test_what_is_read_is_mapped_and_what_was_not_written_whole_is_not_there(encoder, path):
    def broken() -> TokenisedPairs:
        raise MemoryError

    with pytest.raises(MemoryError):
        kept_tokens(path, encoder, broken)
    kept = kept_tokens(path, encoder, lambda: encoder.tokenise(QUERIES, TEXTS))
    assert not kept.input_ids[0].flags.writeable
    assert np.shares_memory(kept.input_ids[0], kept.input_ids[0].base)
    assert [one.suffix for one in path.parent.iterdir() if one != path] == [".tokens"]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeroed", "of before"])
def test_what_is_damaged_is_made_again(encoder, path, damage):
    said = encoder.tokenise(QUERIES, TEXTS)
    kept_tokens(path, encoder, lambda: said)
    (kept,) = path.parent.glob("*.tokens")
    whole = kept.read_bytes()
    ids = said.input_ids[1].tobytes()
    place = whole.index(ids)
    kept.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "zeroed": whole[:place] + bytes(len(ids)) + whole[place + len(ids) :],
            "of before": whole.replace(b"crc32", b"other"),
        }[damage]
    )
    assert as_plain(kept_tokens(path, encoder, lambda: said)) == as_plain(said)
    assert kept.read_bytes() == whole


def test_no_pairs_are_no_tokens(encoder, path):
    nothing = TokenisedPairs([], [], np.zeros(0, np.bool_))
    for _ in range(2):
        assert as_plain(kept_tokens(path, encoder, lambda: nothing)) == [[], [], []]
