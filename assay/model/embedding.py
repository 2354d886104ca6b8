"""Tables of embeddings, empty until the loader fills them. Knows no vocabulary."""

import torch
from torch import nn


def embedding(num_rows: int, size: int) -> nn.Embedding:
    """ids [...] → rows [..., size]. By itself torch would draw random numbers first, and on `meta`, where there are
    none to draw, import its compiler for that.
    """
    return nn.Embedding(num_rows, size, _weight=torch.empty(num_rows, size), _freeze=True)
