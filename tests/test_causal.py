import numpy as np
import pytest
import torch
from builders import tiny_cross_encoder
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rankstill.errors import ConfigError, ModelError
from rankstill.teachers.causal import CausalRanker, load_causal
from rankstill.teachers.kinds import gain_scores

PROMPT = "query {query} item {text} match"
QUERIES = ["red drill", "lamp", "drill"] * 3
TEXTS = ["drill", "red lamp with a long name " * 3, "oak chair", *["lamp drill"] * 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm")
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = f"{PROMPT} red drill lamp oak chair with a long name yes no bad fair good".split()
    tokenizer.train_from_iterator([words], trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(path)
    return path


def load(folder, max_length: int = 64, prompt: str = PROMPT, answers: tuple[str, ...] = ("no", "yes")) -> CausalRanker:
    return load_causal(str(folder), "test", "cpu", "float32", max_length, prompt, answers)


def next_word_logits(ranker: CausalRanker, text: str) -> torch.Tensor:
    """Logits of what follows a text, one text at a time."""
    with torch.inference_mode():
        return ranker.model(**ranker.tokenizer(text, return_tensors="pt")).logits[0, -1]


def test_the_score_is_the_log_odds_of_yes_against_no(folder):
    ranker = load(folder)
    vocabulary = ranker.tokenizer.get_vocab()
    expected = []
    for query, text in zip(QUERIES, TEXTS, strict=True):
        logits = next_word_logits(ranker, f"query {query} item {text} match")
        expected.append((logits[vocabulary["yes"]] - logits[vocabulary["no"]]).item())
    assert gain_scores(ranker.logits(QUERIES, TEXTS, token_budget=64)) == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.1


def test_grades_score_by_their_expected_gain(folder):
    ranker = load(folder, answers=("bad", "fair", "good"))
    ids = [ranker.tokenizer.get_vocab()[answer] for answer in ("bad", "fair", "good")]
    odds = next_word_logits(ranker, "query lamp item drill match")[ids].softmax(dim=0)
    gain = (odds[1] * 1 + odds[2] * 3).item() / 3
    assert gain_scores(ranker.logits(["lamp"], ["drill"])) == pytest.approx(np.log(gain / (1 - gain)), abs=1e-4)


def test_long_items_are_cut_and_the_question_is_kept(folder):
    ranker = load(folder, max_length=8)
    found = ranker.logits(["lamp"], ["red drill with a long name"])
    expected = load(folder).logits(["lamp"], ["red drill with"])
    assert found == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_asked_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="other braces than"):
        load(folder, prompt="{query} {title}")
    with pytest.raises(ConfigError, match="share their first token"):
        load(folder, answers=("yes good", "yes"))
    with pytest.raises(ModelError, match="test: "):
        load(tmp_path)
    tiny_cross_encoder().save(tmp_path)
    with pytest.raises(ModelError, match="it is no causal language model"):
        load(tmp_path)
