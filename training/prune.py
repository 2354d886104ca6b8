"""A smaller BERT cut out of a larger one: fewer pieces, narrower feed-forward layers. Knows weights; trains nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertConfig, BertForSequenceClassification

from training.batches import Batch


def neuron_importance(model: BertForSequenceClassification, batches: Iterable[Batch]) -> list[Tensor]:
    """For each layer `[intermediate]`: how much the loss would change without the neuron, to first order.

    The mean over tokens of |activation x gradient| (Molchanov et al., 2017).
    """
    model.train(False)
    layers = list(model.bert.encoder.layer)
    totals = [torch.zeros(model.config.intermediate_size) for _ in layers]
    seen: dict[int, Tensor] = {}

    def watch(number: int) -> None:
        def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[number] = output

        handles.append(layers[number].get_submodule("intermediate").register_forward_hook(keep))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for number in range(len(layers)):
        watch(number)
    for batch in batches:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = binary_cross_entropy_with_logits(logits, batch.targets, reduction="sum")
        torch.autograd.backward(loss)
        for number, output in seen.items():
            assert output.grad is not None
            totals[number] += (output.detach() * output.grad).abs().sum(dim=(0, 1))
        model.zero_grad()
    for handle in handles:
        handle.remove()
    return totals


def cut(
    model: BertForSequenceClassification,
    old: Tokenizer,
    pieces: Sequence[str],
    layers: Sequence[int],
    width: int,
    importance: Sequence[Tensor],
) -> BertForSequenceClassification:
    """A new model with the named `pieces`, the chosen `layers`, and the `width` most important neurons in each."""
    values = model.config.to_dict() | {
        "vocab_size": len(pieces),
        "num_hidden_layers": len(layers),
        "intermediate_size": width,
        "pad_token_id": 0,
    }
    small = BertForSequenceClassification(BertConfig.from_dict(values))
    rows = torch.tensor([old.token_to_id(piece) for piece in pieces])
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("bert.encoder.layer."):
            state[name] = tensor[rows] if name.endswith("word_embeddings.weight") else tensor
    for number, layer in enumerate(layers):
        neurons = importance[layer].topk(width).indices.sort().values
        for name, tensor in model.bert.encoder.layer[layer].state_dict().items():
            if name.startswith("intermediate.dense"):
                tensor = tensor[neurons]
            elif name == "output.dense.weight":
                tensor = tensor[:, neurons]
            state[f"bert.encoder.layer.{number}.{name}"] = tensor
    small.load_state_dict(state, strict=True)
    return small
