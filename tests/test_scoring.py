import copy

import numpy as np
import pytest
import torch
from builders import made_up_pairs, tiny_cross_encoder
from sentence_transformers import CrossEncoder as PeerCrossEncoder

from rankstill.cross_encoder import CrossEncoder, collate, join_pairs, model_inputs
from rankstill.errors import ConversionError, RunError
from rankstill.runtimes import PROBES, openvino_engine
from rankstill.scoring import PairScorer, is_bfloat16, openvino_scorer, plan_batches, torch_forward, torch_scorer
from rankstill.students.cross import add_grades


@pytest.fixture(scope="module")
def encoder():
    return tiny_cross_encoder()


@pytest.fixture(scope="module")
def scorer(encoder):
    return torch_scorer(encoder, "cpu", "float32", token_budget=256)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 64, 1000, 10**6])
def test_batches_cover_each_row_once_within_the_budget(seed, budget):
    lengths = np.random.default_rng(seed).integers(1, 100, size=seed * 40)
    batches = plan_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert batch.size == 1 or batch.size * lengths[batch].max() <= budget


def test_batches_hold_as_many_pairs_of_like_length_as_fit():
    batches = plan_batches(np.array([3, 10, 5, 10, 4, 5]), 20)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 5, 4, 0]]


def test_batches_waste_little_of_the_budget():
    lengths = np.random.default_rng(0).integers(5, 60, size=3000)
    batches = plan_batches(lengths, 2048)
    padded = sum(batch.size * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()


def test_few_pairs_of_unlike_lengths_are_not_padded_to_the_longest():
    """As of one request, which would fit into one batch."""
    lengths = np.random.default_rng(0).integers(10, 40, size=50)
    batches = plan_batches(lengths, 2048)
    padded = sum(batch.size * lengths[batch].max() for batch in batches)
    assert padded < 1.25 * lengths.sum()
    assert len(batches) < 8
    assert len(plan_batches(np.arange(1, 9), 2048)) == 1, "another batch costs more than so little padding"


def test_scores_are_those_of_one_pair_at_a_time(encoder, scorer):
    queries, texts = made_up_pairs(25)
    expected = []
    for query, text in zip(queries, texts, strict=True):
        inputs = encoder.tokenizer(query, text, truncation="longest_first", max_length=32, return_tensors="pt")
        with torch.inference_mode():
            expected.append(encoder.model(**inputs).logits.item())
    scores = scorer.score(queries, texts)
    assert scores.dtype == np.float32
    assert scores.std() > 0.05, "scores that hardly differ would prove nothing"
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 100, 10**6])
def test_scores_depend_neither_on_batching_nor_on_order(encoder, scorer, budget):
    queries, texts = made_up_pairs(30)
    expected = scorer.score(queries, texts)
    order = np.random.default_rng(budget).permutation(30)
    other = torch_scorer(encoder, "cpu", "float32", budget)
    found = other.score([queries[place] for place in order], [texts[place] for place in order])
    np.testing.assert_allclose(found, expected[order], atol=1e-5)


def test_scores_are_those_of_sentence_transformers(encoder, scorer, tmp_path):
    encoder.save(tmp_path)
    peer = PeerCrossEncoder(str(tmp_path), activation_fn=torch.nn.Identity(), device="cpu")
    queries, texts = made_up_pairs(50)
    expected = peer.predict(list(zip(queries, texts, strict=True)), show_progress_bar=False)
    np.testing.assert_allclose(scorer.score(queries, texts), expected, atol=1e-5)


def test_the_two_sides_of_a_pair_are_told_apart(scorer):
    there, back = scorer.score(["red oak chair", "steel lamp"], ["steel lamp", "red oak chair"])
    assert abs(there - back) > 1e-3


def test_a_truncated_pair_says_so(scorer):
    pairs = scorer.tokenise(["drill"] * 3, ["drill", "chair " * 28, "chair " * 29])
    assert pairs.lengths_B.tolist() == [5, 32, 32]
    assert pairs.truncated.tolist() == [False, False, True]


def test_a_shorter_length_can_be_asked_for_but_no_longer_one(scorer):
    text = "chair " * 60
    assert scorer.tokenise(["drill"], [text], 12).lengths_B.tolist() == [12]
    assert scorer.tokenise(["drill"], [text], 500).lengths_B.tolist() == [32]


def test_truncation_takes_from_the_longer_side(encoder, scorer):
    (ids,) = scorer.tokenise(["lamp"], ["chair " * 60]).input_ids
    assert encoder.tokenizer.decode(ids[:3]) == "[CLS] lamp [SEP]"
    (ids,) = scorer.tokenise(["chair " * 60], ["lamp"]).input_ids
    assert encoder.tokenizer.decode(ids[-2:]) == "lamp [SEP]"


def test_overhead_is_what_the_query_takes(scorer):
    query, text = "red oak chair", "steel table lamp"
    item_tokens = len(scorer.tokenise([""], [text]).input_ids[0]) - 3
    assert scorer.overhead("") == 3
    assert scorer.overhead(query) + item_tokens == len(scorer.tokenise([query], [text]).input_ids[0])


def test_pairs_tokenised_in_parts_score_as_the_whole(scorer):
    queries, texts = made_up_pairs(20)
    parts = [scorer.tokenise(queries[:7], texts[:7]), scorer.tokenise(queries[7:], texts[7:])]
    joined = join_pairs(parts)
    assert joined.truncated.tolist() == scorer.tokenise(queries, texts).truncated.tolist()
    np.testing.assert_allclose(scorer.score_tokens(joined), scorer.score(queries, texts), atol=1e-5)


def test_nothing_to_score(scorer):
    assert scorer.score([], []).shape == (0,)
    assert plan_batches(np.empty(0, dtype=np.int64), 100) == []


def test_empty_texts_and_odd_characters_have_scores(scorer):
    scores = scorer.score(["", "drill", "\x00", "東京"], ["", "", "👩‍👩‍👧", "\u202e"])
    assert np.isfinite(scores).all()


def test_a_score_that_is_not_finite_names_its_pair():
    broken = tiny_cross_encoder(seed=1)
    scorer = torch_scorer(broken, "cpu", "float32", 256)
    scorer.score(["red chair"], ["steel lamp"])
    with torch.no_grad():
        broken.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(RunError, match=r"nan.*red oak chair") as caught:
        scorer.score(["red oak chair"], ["steel lamp"])
    assert "\n" not in str(caught.value)


def test_the_pair_with_the_bad_score_is_the_one_named(encoder):
    healthy = torch_forward(encoder)
    marked = encoder.tokenizer.convert_tokens_to_ids("mug")

    def forward(batch):
        return np.where((batch["input_ids"] == marked).any(axis=1), np.inf, healthy(batch)).astype(np.float32)

    scorer = PairScorer(forward, encoder.tokenizer, 32, 40)
    with pytest.raises(RunError, match="blue ceramic mug"):
        scorer.score(["chair", "lamp", "drill"], ["red oak chair", "blue ceramic mug", "steel"])


def test_bfloat16_scores_are_close_and_come_back_in_single_precision(encoder, scorer):
    queries, texts = made_up_pairs(30)
    exact = scorer.score(queries, texts)
    rounded = torch_scorer(copy.deepcopy(encoder), "cpu", "bfloat16", 256).score(queries, texts)
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    assert np.corrcoef(rounded, exact)[0, 1] > 0.95


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", ""])
def test_bfloat16_is_chosen_where_the_cpu_computes_it_itself(monkeypatch, feature):
    features = {"avx2": True, "avx512_bf16": False, **({feature: True} if feature else {})}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert is_bfloat16("auto", "cpu") is bool(feature)
    assert is_bfloat16("bfloat16", "cpu")
    assert not is_bfloat16("float32", "cpu")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_gives_the_scores_of_torch(encoder, precision):
    queries, texts = made_up_pairs(60)
    expected = torch_scorer(encoder, "cpu", "float32", 256).score(queries, texts)
    found = openvino_scorer(encoder, 1, precision, 256).score(queries, texts)
    assert found == pytest.approx(expected, abs=1e-4 if precision == "float32" else 0.05)
    assert expected.std() > 0.05, "scores that differ"


def test_openvino_gives_logits_of_grades():
    graded = tiny_cross_encoder()
    add_grades(graded.model, 3)
    queries, texts = made_up_pairs(20)
    expected = torch_scorer(graded, "cpu", "float32", 256, grades=True).score(queries, texts)
    assert expected.shape == (20, 3)
    assert openvino_scorer(graded, 1, "float32", 256, grades=True).score(queries, texts) == pytest.approx(
        expected, abs=1e-4
    )
    gains = torch_scorer(graded, "cpu", "float32", 256).score(queries, texts)
    assert openvino_scorer(graded, 1, "float32", 256).score(queries, texts) == pytest.approx(gains, abs=1e-4)


def probes(encoder: CrossEncoder) -> list[dict[str, torch.Tensor]]:
    pairs = [encoder.tokenise(*one) for one in PROBES]
    return [model_inputs(encoder.model, collate(one, range(len(one.input_ids)), encoder.pad_id)) for one in pairs]


def test_a_model_that_openvino_gets_wrong_is_refused(encoder):
    def drifting(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return encoder.model(**inputs).logits + int(inputs["input_ids"].shape[1])  # a trace keeps the length it saw

    batches = probes(encoder)
    with pytest.raises(ConversionError, match=r"OpenVINO's scores differ from torch's by \d"):
        openvino_engine(encoder.model, drifting, batches[0], batches[1], 1, "float32")


def test_a_model_that_openvino_cannot_convert_is_refused(encoder):
    def unknown(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.linalg.svdvals(encoder.model(**inputs).logits)  # which OpenVINO has no form of

    batches = probes(encoder)
    with pytest.raises(ConversionError, match=r"can't convert the model \(.*OpConversionFailure.*\); use torch"):
        openvino_engine(encoder.model, unknown, batches[0], batches[1], 1, "float32")
