"""A causal language model as a teacher: the logits of label tokens after a prompt."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rankstill.encoders import LOCAL, WEIGHTS, find_encoder, loading
from rankstill.errors import ConfigError, ModelError
from rankstill.scoring import Work, is_bfloat16, plan_batches


@dataclass(frozen=True)
class CausalRanker:
    """A language model, its prompt, and the tokens of its answers, worst first."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    prompt: str
    answer_ids: tuple[int, ...]
    work: Work = field(default_factory=Work)

    def logits(self, queries: Sequence[str], texts: Sequence[str], token_budget: int = 2048) -> NDArray[np.float32]:
        """Logits of the C answers for each pair, [B, C]."""
        ids = [self._prompt_ids(query, text) for query, text in zip(queries, texts, strict=True)]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        found = np.empty((len(ids), len(self.answer_ids)), dtype=np.float32)
        batches = plan_batches(lengths, token_budget)
        self.work.add(lengths, batches)
        for rows in batches:
            length = int(lengths[rows].max())
            tokens_BL = torch.zeros(len(rows), length, dtype=torch.long)
            mask_BL = torch.zeros_like(tokens_BL)
            for place, row in enumerate(rows):  # padded behind, which what comes before doesn't see
                tokens_BL[place, : lengths[row]] = torch.tensor(ids[row])
                mask_BL[place, : lengths[row]] = 1
            device = self.model.device
            # What follows each prompt; of all tokens, the logits of a large vocabulary would be most of the work.
            ends, place_B = torch.unique(torch.from_numpy(lengths[rows] - 1), return_inverse=True)
            inputs = {"input_ids": tokens_BL, "attention_mask": mask_BL, "logits_to_keep": ends}
            with torch.inference_mode():
                logits_BEV = self.model(**{name: value.to(device) for name, value in inputs.items()}).logits
            last_BV = logits_BEV[torch.arange(len(rows)), place_B].float()
            found[rows] = last_BV[:, list(self.answer_ids)].cpu().numpy()
        return found

    def _prompt_ids(self, query: str, text: str) -> list[int]:
        """The prompt's tokens; the item's text is cut where they would be too many."""
        ids = self.tokenizer(self.prompt.format(query=query, text=text))["input_ids"]
        excess = len(ids) - self.max_length
        if excess > 0:
            kept = self.tokenizer(text, add_special_tokens=False)["input_ids"][: -excess - 1]
            ids = self.tokenizer(self.prompt.format(query=query, text=self.tokenizer.decode(kept)))["input_ids"]
        return ids[-self.max_length :]


def load_causal(
    name: str, field: str, device: str, precision: str, max_length: int, prompt: str, answers: Sequence[str]
) -> CausalRanker:
    """Load a folder or Hugging Face name, safetensors only.

    Raises:
        ModelError: not a usable model.
        ConfigError: an answer that doesn't start with a token of its own, or a prompt with other names in braces.
    """
    folder = find_encoder(name, field)
    try:
        prompt.format(query="", text="")
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{field}: the prompt {prompt!r} has other braces than {{query}} and {{text}}") from error
    with loading(name, field):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **WEIGHTS)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{field}: {name!r} lacks the weights {', '.join(missing[:3])}; it is no causal language model, name one"
        )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{field}: {type(model).__name__} tells no logits of single tokens; name another kind of model"
        )
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    firsts = [part[0] if part else -1 for part in ids]
    if len(set(firsts)) < len(firsts) or -1 in firsts:
        raise ConfigError(f"{field}: answers {', '.join(map(repr, answers))} share their first token; give other words")
    dtype = torch.bfloat16 if is_bfloat16(precision, device) else torch.float32
    model = model.to(device=torch.device(device), dtype=dtype).eval()
    longest = min(max_length, getattr(model.config, "max_position_embeddings", 1 << 30))
    return CausalRanker(model, tokenizer, longest, prompt, tuple(firsts))
