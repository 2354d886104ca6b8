"""In what company a sequence runs through a model, where that is not just as it comes. Knows no architecture.

Each wraps a module from a PackedBatch to logits [seqs, labels], and is one.
"""

import torch
from torch import Tensor, nn

from assay.model.batch import PackedBatch
from assay.model.prefix import share


class Filled(nn.Module):
    """A model whose products are compiled for the number of their rows, as oneDNN's are: some milliseconds and 0.6 MB
    for each number that has not come before. Batches are filled up to numbers that come again.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: PackedBatch) -> Tensor:
        logits: Tensor = self.module(batch.filled())
        return logits[: batch.num_seqs]


class Shared(nn.Module):
    """A model whose hidden states depend on a token and on those before it alone. What several sequences of a batch
    begin with is computed once: the answers to one prompt, the documents to one query.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: PackedBatch) -> Tensor:
        shared = share(batch)
        if shared is None:
            logits: Tensor = self.module(batch)
            return logits
        smaller, places = shared
        logits = self.module(smaller)
        return logits[places]


class Apart(nn.Module):
    """A model whose products treat all rows alike, each sequence's attention computed by itself: the same bits for a
    sequence in any company.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: PackedBatch) -> Tensor:
        logits: Tensor = self.module(batch.apart())
        return logits


class Alone(nn.Module):
    """Any model, one sequence after another: the same bits for a sequence in any company, at the price of batching."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: PackedBatch) -> Tensor:
        return torch.cat([self.module(one) for one in batch.each()])
