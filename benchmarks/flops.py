"""Useful floating-point operations of a text through a model, written out. Knows no implementation.

Counted: matrix products of the layers and of attention, for tokens that are there (no padding), two operations for a
multiplication and its addition. Of the last layer only what the head's one token needs: keys and values of all tokens;
its query, its output, its feed-forward alone. Not counted: embeddings, norms, activations, softmax, copies, and what an
implementation computes beyond this. So a text has the same figure whoever computes it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Matrix = tuple[int, int]
"""(in, out) of a linear layer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model multiplies.

    keys: the matrix for keys and values. rest: the matrices that only tokens need which the next layer reads.
    heads_width: heads * head_dim. dots: layer, length → attention's products of that width, over all tokens; for scores
    and for values one for each pair that attends. last_dots: length → those of one token, which sees all. pooled: the
    head reads one token. head: matrices for one text.
    """

    layers: int
    keys: Matrix
    rest: tuple[Matrix, ...]
    heads_width: int
    dots: Callable[[int, int], int]
    last_dots: Callable[[int], int]
    pooled: bool
    head: tuple[Matrix, ...]


def shape_of(folder: Path, family: str) -> Shape:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return _FAMILIES[family](config, len(config.get("id2label", {})) or 2)


def flops(shape: Shape, length: int) -> int:
    """Of one text with so many tokens."""
    rest = sum(map(_size, shape.rest))
    full_layers = shape.layers - 1 if shape.pooled else shape.layers
    total = shape.layers * length * _size(shape.keys) + full_layers * length * rest
    total += sum(shape.dots(layer, length) for layer in range(full_layers)) * shape.heads_width
    if shape.pooled:
        total += rest + shape.last_dots(length) * shape.heads_width
    return 2 * (total + sum(map(_size, shape.head)))


def matrices(shape: Shape) -> tuple[Matrix, ...]:
    """The products that the peak is measured on, query, key and value as the one matrix that they can be."""
    query, *others = shape.rest
    fused = (shape.keys[0], shape.keys[1] + query[1])
    return tuple(dict.fromkeys((fused, *others)))


def _size(matrix: Matrix) -> int:
    return matrix[0] * matrix[1]


def _two_for_all(layer: int, length: int) -> int:
    return 2 * length * length


def _two_for_one(length: int) -> int:
    return 2 * length


def _bert(config: dict[str, Any], labels: int) -> Shape:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return Shape(
        layers=config["num_hidden_layers"],
        keys=(hidden, 2 * hidden),
        rest=((hidden, hidden), (hidden, hidden), (hidden, inner), (inner, hidden)),
        heads_width=hidden,
        dots=_two_for_all,
        last_dots=_two_for_one,
        pooled=True,
        head=((hidden, hidden), (hidden, labels)),
    )


def _deberta(config: dict[str, Any], labels: int) -> Shape:
    """As BERT, and each token's query and key with the distances that there are, near ones each, far ones in buckets.
    Distances are projected once for all texts, and so not counted.
    """
    distinct = _distinct_distances(config["position_buckets"] // 2, config["max_position_embeddings"])

    def dots(layer: int, length: int) -> int:
        to_one_side = sum(distinct[:length])  # over all tokens; the distance 0 is on both sides
        return _two_for_all(layer, length) + 2 * (2 * to_one_side - length)

    def last_dots(length: int) -> int:
        return _two_for_one(length) + distinct[length - 1] + length  # one query with distances, every key with its own

    return replace(_bert(config, labels), dots=dots, last_dots=last_dots)


def _distinct_distances(near: int, longest: int) -> list[int]:
    """At n: how many buckets the distances 0 … n fall into (transformers' make_log_bucket_position)."""
    scale = (near - 1) / math.log((longest - 1) / near)
    seen: set[int] = set()
    counts = []
    for distance in range(longest):
        seen.add(distance if distance <= near else near + math.ceil(scale * math.log(distance / near)))
        counts.append(len(seen))
    return counts


def _modernbert(config: dict[str, Any], labels: int) -> Shape:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    reach: int = config["local_attention"] // 2
    every: int = config.get("global_attn_every_n_layers", 3)

    def dots(layer: int, length: int) -> int:
        if layer % every == 0 or reach >= length - 1:
            return 2 * length * length
        return 2 * (length * (2 * reach + 1) - reach * (reach + 1))

    return Shape(
        layers=config["num_hidden_layers"],
        keys=(hidden, 2 * hidden),
        rest=((hidden, hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)),
        heads_width=hidden,
        dots=dots,
        last_dots=_two_for_one,
        pooled=config["classifier_pooling"] == "cls",
        head=((hidden, hidden), (hidden, labels)),
    )


def _decoder(config: dict[str, Any], labels: int) -> Shape:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width, kv = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    return Shape(
        layers=config["num_hidden_layers"],
        keys=(hidden, 2 * kv),
        rest=((hidden, width), (width, hidden), (hidden, 2 * inner), (inner, hidden)),
        heads_width=width,
        dots=lambda layer, length: length * (length + 1),
        last_dots=_two_for_one,
        pooled=True,
        head=((hidden, labels),),
    )


_FAMILIES: dict[str, Callable[[dict[str, Any], int], Shape]] = {
    "bert": _bert,
    "deberta": _deberta,
    "modernbert": _modernbert,
    "decoder": _decoder,
}
