"""Checkpoints: found in a folder or on the hub (hub.py), streamed, renamed, every parameter filled exactly once.

Knows no architecture: the family's renaming table says which tensor goes where. Never runs code from a checkpoint.
"""

import json
import math
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from assay.config import BUNDLED_MODEL, BUNDLED_NAME
from assay.errors import CheckpointError
from assay.model.blueprint import Rename, Shapes

# Left in checkpoints by other tools, of no use to a classifier.
_IGNORED = re.compile(
    r"lm_head\..*|cls\..*|.*\.position_ids|.*\.rotary_emb\.inv_freq|roberta\.pooler\..*"
    # Heads of pretraining, by family: ELECTRA, ALBERT, DistilBERT.
    r"|(discriminator|generator)_predictions\..*|generator_lm_head\..*|(predictions|sop_classifier)\..*"
    r"|vocab_(transform|layer_norm|projector)\..*"
)
_LEGACY = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_INDEX = "model.safetensors.index.json"


def resolve(model: str, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub id downloaded (with progress) or taken from the cache.

    The bundled model may be asked for by its name, which every answer of it carries.
    allow_pickle: fetch `.bin` files too.

    Raises CheckpointError when there is no such folder or repository.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model == BUNDLED_NAME:
        return BUNDLED_MODEL
    if folder.exists():
        raise CheckpointError(f"{model} is a file; give the folder that holds config.json and model.safetensors.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise CheckpointError(f"There is no folder {model}, and it is no hub id (owner/name) either.")
    from assay.model.hub import fetch  # its client takes 0.2 s, which a folder does without

    return fetch(model, revision, allow_pickle)


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


def _shards_of(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else None
    if names is None or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index} has no weight_map from tensor names to the names of files beside it.")
    return [index.parent / name for name in sorted(set(names))]


def logit_score_ids(folder: Path) -> tuple[int, ...] | None:
    """Token ids (false, true) or (true,) of a sentence-transformers LogitScore module; None where there is none."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    try:
        entries = json.loads(modules.read_text("utf-8"))
        path = next((entry["path"] for entry in entries if str(entry["type"]).endswith(".LogitScore")), None)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{modules} is no list of modules with a type and a path.") from error
    if path is None:
        return None
    if not isinstance(path, str) or Path(path).name != path:
        raise CheckpointError(f"{modules} names the folder {path!r}, which does not lie beside it.")
    config = read_json(folder / path / "config.json")
    ids = [config[name] for name in ("false_token_id", "true_token_id") if config.get(name) is not None]
    if config.get("true_token_id") is None or any(type(token_id) is not int or token_id < 0 for token_id in ids):
        raise CheckpointError(f"{folder / path / 'config.json'} needs true_token_id, and may have false_token_id: ids.")
    return tuple(ids)


class Tensors(Protocol):
    """What `load` reads: names with shapes at once, tensors one by one."""

    folder: Path
    shapes: Shapes

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


class Checkpoint:
    """The tensors of a folder by name, in one safetensors file or in shards. Shapes are read at once, tensors later.

    allow_pickle: where there are no safetensors, read `.bin` files, as data only: none of a pickle's code is run.
    """

    def __init__(self, folder: Path, allow_pickle: bool = False) -> None:
        self.folder = folder
        self._allow_pickle = allow_pickle
        self.shapes: Shapes = {}
        self._files: dict[str, Path] = {}
        for path in self._shards():
            self._scan(path)

    def _shards(self) -> list[Path]:
        index, single = self.folder / _INDEX, self.folder / "model.safetensors"
        if index.is_file():
            return _shards_of(index)
        if single.is_file():
            return [single]
        pickles = sorted(self.folder.glob("pytorch_model*.bin"))
        if pickles and self._allow_pickle:
            return pickles
        if pickles or any(self.folder.glob("*.bin")):
            raise CheckpointError(
                f"{self.folder} has its weights only as .bin (pickle); convert them to safetensors, or allow them with "
                "--allow-pickle."
            )
        raise CheckpointError(f"{self.folder} has no model.safetensors and no {_INDEX}.")

    def _scan(self, path: Path) -> None:
        shapes = dict(self.shapes)
        for name, shape in _shapes_in(path):
            if name in self._files:
                raise CheckpointError(f"{name} is in {self._files[name].name} and in {path.name}.")
            self._files[name] = path
            shapes[name] = shape
        self.shapes = shapes

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one by one, file by file, each with memory of its own."""
        for path in sorted(set(self._files.values())):
            if path.suffix == ".bin":
                yield from ((name, tensor.clone()) for name, tensor in _unpickled(path).items())
            else:
                yield from tensors_in(path)


def tensors_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file one by one, in the file's order.

    Read and not mapped: of a mapping, all pages that were touched stay with the process until the end; and a file that
    is written anew while it is served would change the scores, and one that is cut would end the process.
    """
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            for name in file.offset_keys():
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _shapes_in(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    if path.suffix == ".bin":
        yield from ((name, tuple(tensor.shape)) for name, tensor in _unpickled(path).items())
        return
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A `.bin` file's tensors, mapped into memory where its format allows. Anything but tensors is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} cannot be read as plain tensors: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} holds something else than named tensors.")
    return state


Filled = Callable[[str, nn.Module], None]
"""Told the name of a part of a module, and the part, once all parameters of its own are there."""


def load(
    module: nn.Module,
    checkpoint: Tensors,
    renames: tuple[Rename, ...],
    dtype: torch.dtype,
    device: torch.device,
    filled: Filled,
) -> None:
    """Fill a module built on `meta`: the trunk in `dtype`, the head in float32.

    A tensor goes wherever a rule sends it: to several places, where a head is tied to the embeddings. filled: may lay
    out anew what is there, so that no more than one matrix is held twice.
    Raises CheckpointError naming every missing, left-over, doubled, misshapen or non-finite tensor.
    """
    filling = _Filling(module, dtype, device, filled)
    for name, tensor in checkpoint:
        rules = _rules_for(name, renames)
        if not rules and not _IGNORED.fullmatch(name):
            filling.problems.append(f"left over: {name}")
        for rule, target, part in rules:
            if not target:
                break
            filling.take(name, tensor, rule, target, part)
    problems = filling.problems + filling.missing()
    if problems:
        more = f" … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{checkpoint.folder} does not fit its config.json: {'; '.join(problems[:8])}{more}")


class _Filling:
    """Which parameters of a module are filled, which fused ones are still in parts, and what went wrong."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device, filled: Filled) -> None:
        self.problems: list[str] = []
        self._module = module
        self._dtype, self._device = dtype, device
        self._wanted = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._filled: dict[str, str] = {}
        self._left = Counter(name.rpartition(".")[0] for name in self._wanted)
        self._tell = filled
        self._parts: dict[str, dict[str, Tensor]] = {}

    def take(self, name: str, tensor: Tensor, rule: Rename, target: str, part: str) -> None:
        if target not in self._wanted:
            self.problems.append(f"left over: {name}")
            return
        if rule.parts:
            parts = self._parts.setdefault(target, {})
            parts[part] = tensor
            if len(parts) < len(rule.parts):
                return
            del self._parts[target]
            if not _fit([parts[part].shape for part in rule.parts]):
                shapes = ", ".join(f"{part} {list(parts[part].shape)}" for part in rule.parts)
                self.problems.append(f"misshapen: {target} is made of {shapes}")
                self._filled[target] = name
                return
            tensor = torch.cat([parts[part] for part in rule.parts])
        self._put(name, tensor if rule.transform is None else rule.transform(tensor), target)

    def missing(self) -> list[str]:
        return [f"missing: {target}{self._have(target)}" for target in self._wanted if target not in self._filled]

    def _put(self, name: str, tensor: Tensor, target: str) -> None:
        wanted = self._wanted[target]
        if target in self._filled:
            self.problems.append(f"doubled: {name} (also {self._filled[target]})")
        elif tensor.shape != wanted:
            self.problems.append(f"misshapen: {name} is {list(tensor.shape)}, should be {list(wanted)}")
        elif not _is_finite(tensor):
            self.problems.append(f"not finite (NaN or infinity): {name}")
        else:
            self._assign(target, tensor.to(self._device, torch.float32 if target.startswith("head.") else self._dtype))
        self._filled[target] = name

    def _assign(self, target: str, tensor: Tensor) -> None:
        owner, _, leaf = target.rpartition(".")
        part = self._module.get_submodule(owner)
        setattr(part, leaf, nn.Parameter(tensor.contiguous(), requires_grad=False))
        self._left[owner] -= 1
        if not self._left[owner]:
            self._tell(owner, part)

    def _have(self, target: str) -> str:
        return f" (only {', '.join(sorted(self._parts[target]))} of it)" if target in self._parts else ""


def _rules_for(name: str, renames: tuple[Rename, ...]) -> list[tuple[Rename, str, str]]:
    """(rule, our name, part) for every rule that takes this tensor. An empty name drops it, whatever rules follow."""
    for old, new in _LEGACY:
        name = name.replace(old, new)
    return [(rule, *found) for rule in renames if (found := rule.match(name)) is not None]


def _fit(shapes: list[torch.Size]) -> bool:
    """Whether parts can be joined: all of one width, and the last two (k and v, gate and up) alike."""
    return len({shape[1:] for shape in shapes}) == 1 and len(shapes[0]) > 0 and shapes[-1] == shapes[-2]


def _is_finite(tensor: Tensor) -> bool:
    """By the least and the largest, which are NaN where there is one. Four times as fast as a look at each."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in tensor.aminmax())
