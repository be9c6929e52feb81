from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from builders import TEXTS, tiny_cross_encoder

from rankstill import item_index
from rankstill.bi_encoder import BiEncoder
from rankstill.cross_encoder import CrossEncoder
from rankstill.errors import ConfigError, ConversionError, ModelError
from rankstill.item_index import (
    ItemEncoder,
    KnownItemScorer,
    append_items,
    create_index,
    missing_items,
    open_index,
)
from rankstill.model_config import Student
from rankstill.scoring import torch_scorer
from rankstill.students import make_student
from rankstill.towers import TowerModel

ITEMS = pl.DataFrame({"item_id": [f"i{place}" for place in range(len(TEXTS))], "text": TEXTS})


def student(family: str = "late") -> CrossEncoder:
    return make_student(Student(family=family, layers=2, vectors=4, width=16), tiny_cross_encoder(), 0)


def filled(folder, encoder: CrossEncoder, items: pl.DataFrame = ITEMS):
    """An index of the items, written in two blocks."""
    assert isinstance(encoder.model, TowerModel)
    index = create_index(folder, "--out", "hash", encoder.model, ["title"])
    return added(index, encoder, items)


def added(index, encoder: CrossEncoder, items: pl.DataFrame):
    missing = missing_items(index, items)
    blocks = (ItemEncoder(encoder).encode(block["text"].to_list()) for block in missing.iter_slices(2))
    return append_items(index, missing, blocks)


@pytest.mark.parametrize("family", ["bi", "late"])
def test_known_items_score_as_their_texts(tmp_path, family):
    encoder = student(family)
    index = filled(tmp_path / "index", encoder)
    expected = torch_scorer(encoder, "cpu", "float32", 512).score(["red drill"] * len(TEXTS), TEXTS)
    known = KnownItemScorer(ItemEncoder(encoder), open_index(index.folder, "test", "hash"))
    found = known.score("red drill", ITEMS["item_id"].to_list())
    assert found == pytest.approx(expected, abs=0.05), "int8 costs little"
    assert np.ptp(expected) > 0.3
    some = KnownItemScorer(ItemEncoder(encoder), index).score("lamp", ["i0", "absent"])
    assert np.isnan(some).tolist() == [False, True]


@pytest.mark.parametrize("family", ["bi", "late"])
def test_openvino_encodes_what_torch_encodes_in_several_threads_too(family):
    plain, fast = ItemEncoder(student(family)), ItemEncoder.fast(student(family), 1)
    assert fast._encoder.engine is not None
    vectors = plain.items(plain.tokenise(TEXTS), 64)
    assert fast.items(fast.tokenise(TEXTS), 64) == pytest.approx(vectors, abs=1e-4)
    expected = [compare(plain, query, vectors) for query in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(compare, fast, vectors=vectors), TEXTS * 20))
    assert np.array(found) == pytest.approx(np.array(expected * 20), abs=1e-3)
    together = plain.queries(plain.tokenise(TEXTS))  # padded to the longest
    assert np.array([plain.compare(one, vectors) for one in together]) == pytest.approx(np.array(expected), abs=1e-4)


def compare(encoder, query, vectors):
    (query_SV,) = encoder.queries(encoder.tokenise([query]))
    return encoder.compare(query_SV, vectors)


def test_what_openvino_cant_run_is_encoded_in_torch(monkeypatch):
    def refuse(*_):
        raise ConversionError("OpenVINO can't convert the model; use torch")

    monkeypatch.setattr(BiEncoder, "in_openvino", refuse)
    assert ItemEncoder.fast(student(), 1)._encoder.engine is None


def test_quantised_vectors_are_off_by_half_a_step_at_most():
    vectors = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    found = item_index.quantise(vectors)
    error = np.abs(found.bytes_BMW * found.scales_BM[..., None] - vectors)
    assert (error <= found.scales_BM[..., None] / 2 + 1e-6).all()
    assert np.abs(found.bytes_BMW).max(axis=-1).tolist() == [[127] * 3] * 5
    assert item_index.quantise(np.zeros((1, 1, 4), np.float32)).bytes_BMW.tolist() == [[[0] * 4]]


def test_an_item_is_encoded_once_and_again_where_it_changed(tmp_path):
    encoder = student()
    index = filled(tmp_path / "index", encoder)
    assert missing_items(index, ITEMS).height == 0
    changed = ITEMS.with_columns(text=pl.when(item_id="i2").then(pl.lit("oak chair")).otherwise("text"))
    more = pl.concat([changed, pl.DataFrame({"item_id": ["i9"], "text": ["a new lamp"]})])
    assert sorted(missing_items(index, more)["item_id"]) == ["i2", "i9"]
    before = KnownItemScorer(ItemEncoder(encoder), index)
    after = KnownItemScorer(ItemEncoder(encoder), added(index, encoder, more))
    old, new = before.score("oak chair", ["i0", "i2"]), after.score("oak chair", ["i0", "i2"])
    assert old[0] == new[0]
    assert new[1] > old[1] + 0.1
    assert after.score("lamp", ["i9"])[0] == pytest.approx(
        torch_scorer(encoder, "cpu", "float32", 512).score(["lamp"], ["a new lamp"])[0], abs=0.1
    )
    assert before.score("oak chair", ["i2"])[0] == old[1], "who opened it before keeps what was there"


def test_an_update_that_is_cut_short_changes_nothing(tmp_path):
    encoder = student()
    index = filled(tmp_path / "index", encoder, ITEMS.head(3))

    def broken():
        yield ItemEncoder(encoder).encode([TEXTS[3]])
        raise OSError("disk full")

    missing = missing_items(index, ITEMS)
    with pytest.raises(OSError, match="disk full"):
        append_items(index, missing, broken())
    reopened = open_index(index.folder, "test")
    assert reopened.items.equals(index.items)
    whole = added(reopened, encoder, ITEMS)
    indexes = (whole, filled(tmp_path / "new", encoder))
    ids = ITEMS["item_id"].to_list()
    found, expected = (KnownItemScorer(ItemEncoder(encoder), index).score("lamp", ids) for index in indexes)
    assert found == pytest.approx(expected)


def test_compacting_drops_what_no_item_has(tmp_path):
    encoder = student()
    index = item_index.remove_items(filled(tmp_path / "index", encoder), ["i1", "i3"])
    small = item_index.compact(index, tmp_path / "small")
    assert (small.manifest["rows"], index.manifest["rows"]) == (3, 5)
    assert (tmp_path / "small" / "vectors.i8").stat().st_size == 3 * 4 * 16
    ids = ["i0", "i1", "i2", "i3", "i4"]
    scores = [KnownItemScorer(ItemEncoder(encoder), one).score("drill", ids) for one in (index, small)]
    assert np.array_equal(*scores, equal_nan=True)
    assert np.isnan(scores[0]).tolist() == [False, True, False, True, False]


def test_an_index_of_another_student_is_refused(tmp_path):
    filled(tmp_path / "index", student())
    with pytest.raises(
        ModelError, match="comes from the student hash…, not from other…; index the items with this one"
    ):
        open_index(tmp_path / "index", "--out", "other")


@pytest.mark.parametrize("damage", ["manifest.json", "vectors.i8", "scales.f32", "items-*.parquet"])
def test_a_damaged_index_is_refused(tmp_path, damage):
    filled(tmp_path / "index", student())
    (damaged,) = (tmp_path / "index").glob(damage)
    damaged.write_bytes(b"x")
    with pytest.raises(ModelError, match="make it again"):
        open_index(tmp_path / "index", "test")


def test_a_cross_encoder_has_no_item_vectors():
    with pytest.raises(ConfigError, match="family cross, which has no item vectors"):
        ItemEncoder(tiny_cross_encoder()).encode(["lamp"])


def test_vectors_dont_depend_on_what_is_encoded_beside(tmp_path):
    encoder = student()
    together = ItemEncoder(encoder).encode(TEXTS, token_budget=64)
    with torch.inference_mode():
        alone = [ItemEncoder(encoder).encode([text]) for text in TEXTS]
    for place, one in enumerate(alone):
        assert np.abs(together.bytes_BMW[place].astype(int) - one.bytes_BMW[0]).max() <= 1


def test_an_index_that_was_hardly_begun_is_begun_again_and_nothing_else_is_touched(tmp_path):
    encoder = student()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "vectors.i8").touch()
    assert create_index(begun, "--out", "hash", encoder.model, ["title"]).manifest["rows"] == 0
    (tmp_path / "file").touch()
    for place in ("file", "."):
        with pytest.raises(ConfigError, match=r"--out: .* is there already and no item index; give a new folder"):
            create_index(tmp_path / place, "--out", "hash", encoder.model, ["title"])
    for place in (tmp_path / "file" / "in" / "it", Path("/proc/index")):
        with pytest.raises(ConfigError, match=r"--out: .* can't be written"):
            create_index(place, "--out", "hash", encoder.model, ["title"])
