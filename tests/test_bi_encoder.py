from dataclasses import replace

import pytest
from builders import made_up_pairs, tiny_cross_encoder

from rankstill.bi_encoder import load_bi_encoder
from rankstill.vector_cache import VectorCache


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_gives_the_cosines_of_torch(tmp_path, precision):
    tiny_cross_encoder(max_length=32).save(tmp_path)
    queries, texts = made_up_pairs(40)
    bi = load_bi_encoder(str(tmp_path), "test", max_length=32)
    expected = bi.score(queries, texts)
    found = bi.in_openvino(1, precision).score(queries, texts)
    assert found == pytest.approx(expected, abs=1e-5 if precision == "float32" else 0.02)
    assert expected.std() > 0.02, "cosines that differ"


def test_a_query_is_encoded_once_over_calls(tmp_path):
    tiny_cross_encoder(max_length=32).save(tmp_path)
    queries, texts = made_up_pairs(40)
    whole = load_bi_encoder(str(tmp_path), "test", max_length=32).score(queries, texts)
    bi = replace(load_bi_encoder(str(tmp_path), "test", max_length=32), queries=VectorCache(1 << 20))
    first = bi.score(queries, ["something else"] * 40)
    before = replace(bi.work)
    again = bi.score(queries, ["something else"] * 40)
    one = (bi.work - before).tokens
    assert one == len(bi.tokenizer("something else")["input_ids"]), "only the item's"
    assert again == pytest.approx(first, abs=0)
    assert bi.score(queries[20:], texts[20:]) == pytest.approx(whole[20:], abs=1e-6)
