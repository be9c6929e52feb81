"""Structured pruning: a student without the attention heads and feed-forward units that matter least."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from rankstill.batches import Rows, TokenisedLists, collate_lists
from rankstill.cross_encoder import CrossEncoder, collate, model_inputs
from rankstill.errors import ModelError
from rankstill.model_config import Prune
from rankstill.objective import Objective
from rankstill.pruned import PrunedBert, PrunedBertConfig, bert_layers, keep


def prune(
    student: CrossEncoder, shares: Prune, lists: TokenisedLists, parts: Sequence[Rows], objective: Objective
) -> CrossEncoder:
    """A student without the given shares of each layer's heads and units; one of each stays.

    What matters is what the loss of the lists `parts` would feel: see `importances`.

    Raises:
        ModelError: no BERT.
    """
    model = prunable(student)
    heads, units = importances(student, lists, parts, objective)
    size = bert_layers(model)[0].attention.self.attention_head_size
    chosen_heads = [_most(values, shares.heads) for values in heads]
    chosen_units = [_most(values, shares.units) for values in units]
    for layer, own_heads, own_units in zip(bert_layers(model), chosen_heads, chosen_units, strict=True):
        columns = (own_heads.unsqueeze(1) * size + torch.arange(size)).flatten()
        keep(layer, columns, own_units)
    settings = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    settings |= {"kept_heads": list(map(len, chosen_heads)), "kept_units": list(map(len, chosen_units))}
    pruned = PrunedBert(PrunedBertConfig(**settings))
    pruned.load_state_dict(model.state_dict())
    return CrossEncoder(pruned, student.tokenizer, student.max_length)


def prunable(student: CrossEncoder) -> BertForSequenceClassification:
    """The model of a student that can be pruned.

    Raises:
        ModelError: no BERT.
    """
    if not isinstance(student.model, BertForSequenceClassification):
        kind = type(student.model).__name__
        raise ModelError(f"student.prune: a {kind} can't be pruned, a BERT can; set its shares to 0")
    return student.model


def importances(
    student: CrossEncoder, lists: TokenisedLists, parts: Sequence[Rows], objective: Objective
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer, the importance of its heads, [H], and of its feed-forward units, [F].

    The mean over lists of |d loss / d m| at m = 1, where m multiplies what the head or unit gives: Michel, Levy and
    Neubig 2019, "Are Sixteen Heads Really Better than One?", for heads, and for units the first-order term of Molchanov
    et al. 2019, "Importance Estimation for Neural Network Pruning".
    """
    model = prunable(student).eval()
    gates, hooks = [], []
    for layer in bert_layers(model):
        size = layer.attention.self.attention_head_size
        for dense, repeats in ((layer.attention.output.dense, size), (layer.output.dense, 1)):
            gate = torch.ones(dense.in_features // repeats, requires_grad=True)
            gates.append(gate)
            hooks.append(dense.register_forward_pre_hook(_gating(gate, repeats)))
    totals = [torch.zeros_like(gate) for gate in gates]
    for part in parts:
        batch = collate_lists(lists, [part], len(part))
        inputs = collate(lists.tokens, part[batch.groups[0]].tolist(), student.pad_id)
        logits_QNC = batch.arrange([model(**model_inputs(model, inputs)).logits])
        loss = objective(logits_QNC[..., 0], batch.labels_QN, batch.teacher_QN, batch.mask_QN).sum()
        for total, gradient in zip(totals, torch.autograd.grad(loss, gates), strict=True):
            total += gradient.abs() / len(parts)
    for hook in hooks:
        hook.remove()
    return totals[::2], totals[1::2]


def _gating(gate: Tensor, repeats: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def multiply(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0] * gate.repeat_interleave(repeats),)

    return multiply


def _most(values: Tensor, share: float) -> Tensor:
    """Places of the most important values, all but `share` of them, in order."""
    count = max(1, len(values) - int(len(values) * share + 0.5))
    return values.topk(count).indices.sort().values
