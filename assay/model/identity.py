"""Which weights are these? A hash that what is fitted to a model carries along. Knows nothing of what that is."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from assay.model.weights import Checkpoint

_WHOLE = 1 << 16  # bytes; of larger tensors, pieces that lie evenly in them
_PIECES, _PIECE = 16, 1 << 12


def weights_identity(
    folder: Path,
    adapter: Path | None = None,
    allow_pickle: bool = False,
    answer_token_ids: tuple[int, ...] | None = None,
) -> str:
    """Hex digits of a hash over the names, shapes, types and values of a checkpoint's tensors; of large ones, samples.

    Neither where the files lie nor how they are cut into shards counts, nor the precision that is served; the adapter
    does, and so do a reranker's answer tokens. Raises CheckpointError.
    """
    total = hashlib.blake2b(digest_size=16)
    tensors = {name: _digest(tensor) for name, tensor in Checkpoint(folder, allow_pickle)}
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name]}\n".encode())
    if adapter is not None:
        for part in ("adapter_config.json", "adapter_model.safetensors"):
            with (adapter / part).open("rb") as file:
                total.update(f"{part} {hashlib.file_digest(file, 'blake2b').hexdigest()}\n".encode())
    if answer_token_ids is not None:
        total.update(f"answers {answer_token_ids}\n".encode())
    return total.hexdigest()


def _digest(tensor: Tensor) -> str:
    """Of a tensor that is mapped from its file, only the pages that are looked at are read."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    found = hashlib.blake2b(f"{tuple(tensor.shape)} {tensor.dtype}".encode(), digest_size=16)
    if len(data) <= _WHOLE:
        found.update(_bytes(data))
    else:
        for i in range(_PIECES):
            start = (len(data) - _PIECE) * i // (_PIECES - 1)
            found.update(_bytes(data[start : start + _PIECE]))
    return found.hexdigest()


def _bytes(data: Tensor) -> bytes:
    """Without NumPy, which nothing needs that scores."""
    return bytes(data.tolist())
