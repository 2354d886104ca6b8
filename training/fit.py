"""One training loop for teacher and student: AdamW, warm-up and decay, the best epoch on dev kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertForSequenceClassification

from training.batches import Batch, Encoded, by_length
from training.scores import Floats, best_threshold, score


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn. `head_lr` is for the pooler and the classifier, `lr` for everything below.

    The rate rises for `warmup_steps`, holds, and falls to nothing over the last `decay_steps`.
    """

    epochs: int
    warmup_steps: int
    decay_steps: int
    batch_size: int = 64
    lr: float = 1e-4
    head_lr: float = 5e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


Epoch = Callable[[int], tuple[int, Iterator[Batch]]]
Loss = Callable[[Tensor, Batch], Tensor]


def fit(
    model: BertForSequenceClassification, epoch: Epoch, loss_of: Loss, dev: Encoded, recipe: Recipe, best: Path
) -> None:
    """Train in bfloat16 autocast; after each epoch save to `best` if macro-F1 on dev, at its best threshold, rose.

    `epoch(n)` gives the number of batches and the batches; `loss_of(logits, batch)` the loss of one of them.
    """
    optimizer = _optimizer(model, recipe)
    total = recipe.epochs * epoch(0)[0]
    schedule = LambdaLR(
        optimizer, lambda step: min((step + 1) / recipe.warmup_steps, 1.0, (total - step) / recipe.decay_steps)
    )
    highest, began, step = -1.0, time.monotonic(), 0
    for number in range(recipe.epochs):
        model.train()
        losses: list[float] = []
        for batch in epoch(number)[1]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            loss = loss_of(logits.float(), batch)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if step % 100 == 0:
                left = (time.monotonic() - began) / step * (total - step) / 60
                mean = sum(losses[-100:]) / len(losses[-100:])
                print(f"  step {step}/{total}  loss {mean:.4f}  {left:.1f} min left", flush=True)
        highest = _keep_if_better(model, dev, number, highest, best)


def predict(model: BertForSequenceClassification, data: Encoded) -> Floats:
    """Probabilities `[texts, labels]` in float32, in the order of the data."""
    model.train(False)
    probs = torch.empty(len(data.token_ids), model.classifier.out_features)
    with torch.inference_mode():
        for batch in by_length(data, 64):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            probs[batch.rows] = logits.float().sigmoid()
    result: Floats = probs.numpy()
    return result


def _optimizer(model: BertForSequenceClassification, recipe: Recipe) -> torch.optim.Optimizer:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = recipe.head_lr if "pooler" in name or "classifier" in name else recipe.lr
        decay = 0.0 if parameter.ndim == 1 else recipe.weight_decay
        groups.setdefault((lr, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": ps, "lr": lr, "weight_decay": decay} for (lr, decay), ps in groups.items()], fused=True
    )


def _keep_if_better(
    model: BertForSequenceClassification, dev: Encoded, number: int, highest: float, best: Path
) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        probs = predict(model, dev)
    targets: Floats = dev.targets.numpy()
    threshold = best_threshold(targets, probs)
    scores = score(targets, probs, threshold)
    print(
        f"epoch {number + 1}: dev macro-F1 {scores.macro_f1:.4f} at {threshold:.2f}, micro-F1 {scores.micro_f1:.4f}, "
        f"macro AP {scores.macro_average_precision:.4f}",
        flush=True,
    )
    if scores.macro_f1 > highest:
        model.save_pretrained(best)
    return max(highest, scores.macro_f1)
