"""`assay serve` with a model that computes nothing: what HTTP, tokenizer and engine cost by themselves."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import assay.engine.loading as loading
from assay.cli import main
from assay.model.batch import PackedBatch
from assay.model.registry import LoadedModel

load_model = loading.load_model


class Null(nn.Module):
    """A zero for every label."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, batch: PackedBatch) -> Tensor:
        return torch.zeros(batch.num_seqs, self.labels)


def load_null(*arguments: Any, **options: Any) -> LoadedModel:
    model = load_model(*arguments, **options)
    return replace(model, module=Null(len(model.labels)))


if __name__ == "__main__":
    loading.load_model = load_null
    main()
