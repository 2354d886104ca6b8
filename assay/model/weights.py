"""Checkpoints: found in a folder or on the hub, streamed, renamed, every parameter filled exactly once.

Knows no architecture: the family's renaming table says which tensor goes where. Never runs code from a checkpoint.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.model.blueprint import Rename, Shapes

# Left in checkpoints by other tools, of no use to a classifier.
_IGNORED = re.compile(r"lm_head\..*|cls\..*|.*\.position_ids|.*\.rotary_emb\.inv_freq")
_LEGACY = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "vocab.txt", "merges.txt"]
_INDEX = "model.safetensors.index.json"


def resolve(model: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub id downloaded (with progress) or taken from the cache.

    Raises CheckpointError when there is no such folder or repository.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model} is a file; give the folder that holds config.json and model.safetensors.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise CheckpointError(f"There is no folder {model}, and it is no hub id (owner/name) either.")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{model} is neither a folder nor in the local hub cache, and the hub cannot be reached."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model} is neither a folder nor a repository on the hub (a private one needs `hf auth login`)."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{model} could not be fetched from the hub: {reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError when it is missing, broken or no object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is no checkpoint.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return value


class Checkpoint:
    """The tensors of a folder by name, in one safetensors file or in shards. Shapes are read at once, tensors later."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: Shapes = {}
        self._files: dict[str, Path] = {}
        for path in self._shards():
            self._scan(path)

    def _shards(self) -> list[Path]:
        index, single = self.folder / _INDEX, self.folder / "model.safetensors"
        if index.is_file():
            return [self.folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        if single.is_file():
            return [single]
        if any(self.folder.glob("*.bin")):
            raise CheckpointError(f"{self.folder} has its weights only as .bin (pickle); convert them to safetensors.")
        raise CheckpointError(f"{self.folder} has no model.safetensors and no {_INDEX}.")

    def _scan(self, path: Path) -> None:
        shapes = dict(self.shapes)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, it is no mapping
                    if name in self._files:
                        raise CheckpointError(f"{name} is in {self._files[name].name} and in {path.name}.")
                    self._files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        self.shapes = shapes

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one by one, file by file, so that no more than one tensor is held twice."""
        for path in sorted(set(self._files.values())):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)


def load(module: nn.Module, checkpoint: Checkpoint, renames: tuple[Rename, ...], dtype: torch.dtype) -> None:
    """Fill a module built on `meta`: the trunk in `dtype`, the head in float32.

    Raises CheckpointError naming every missing, left-over, doubled or misshapen tensor.
    """
    wanted = dict(module.named_parameters())
    filled: dict[str, str] = {}
    halves: dict[str, dict[str, Tensor]] = {}
    problems: list[str] = []
    for name, tensor in checkpoint:
        if _IGNORED.fullmatch(name):
            continue
        rule, target, part = _rename(name, renames)
        if rule is None or target not in wanted:
            problems.append(f"left over: {name}")
            continue
        if rule.parts:
            halves.setdefault(target, {})[part] = tensor
            if len(halves[target]) < len(rule.parts):
                continue
            pieces = halves.pop(target)
            tensor = torch.cat([pieces[part] for part in rule.parts])
        if rule.transform is not None:
            tensor = rule.transform(tensor)
        if target in filled:
            problems.append(f"doubled: {name} (also {filled[target]})")
        elif tensor.shape != wanted[target].shape:
            problems.append(f"misshapen: {name} is {list(tensor.shape)}, should be {list(wanted[target].shape)}")
        else:
            _assign(module, target, tensor.to(torch.float32 if target.startswith("head.") else dtype))
        filled[target] = name
    problems += [f"missing: {target}{_have(halves, target)}" for target in wanted if target not in filled]
    if problems:
        more = f" … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{checkpoint.folder} does not fit its config.json: {'; '.join(problems[:8])}{more}")


def _rename(name: str, renames: tuple[Rename, ...]) -> tuple[Rename | None, str, str]:
    for old, new in _LEGACY:
        name = name.replace(old, new)
    for rule in renames:
        found = rule.match(name)
        if found is not None:
            return rule, *found
    return None, "", ""


def _have(halves: dict[str, dict[str, Tensor]], target: str) -> str:
    return f" (only {', '.join(sorted(halves[target]))} of it)" if target in halves else ""


def _assign(module: nn.Module, target: str, tensor: Tensor) -> None:
    owner, _, leaf = target.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor.contiguous(), requires_grad=False))
