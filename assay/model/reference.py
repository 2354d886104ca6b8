"""transformers' own classifiers and tokenizers, loaded strictly: to run what is not native, and to compare with.

The optional extra is imported here and nowhere else, when somebody asks. Never runs code from a checkpoint.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from assay.errors import CheckpointError
from assay.labels import label_names
from assay.model.registry import ARCHITECTURES
from assay.model.weights import Checkpoint

_log = logging.getLogger("assay.model")

# model_type → why text alone cannot be scored: these run on defaults that stand for real inputs, or read no token ids.
UNSUPPORTED = {
    "canine": "it reads characters, and has no vocabulary",
    "layoutlm": "it needs the boxes of words on a page",
    "layoutlmv2": "it needs an image and the boxes of words on it",
    "layoutlmv3": "it needs the boxes of words on a page",
    "lilt": "it needs the boxes of words on a page",
    "markuplm": "it needs the paths of words in a document",
    "perceiver": "it reads bytes, and has no vocabulary",
    "roc_bert": "it needs the shapes and the sounds of characters",
    "tapas": "it needs a table",
}
# Left in checkpoints by other tools or older versions, of no use to a classifier.
_IGNORED = re.compile(
    r"lm_head\..*|cls\..*|.*position_ids|.*rotary_emb\.inv_freq|.*\.(attn|attention)\.(masked_)?bias|[a-z_0-9]+\.pooler\..*"
)
# What transformers raises at a checkpoint that it cannot read.
LOAD_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)


def classifiers() -> dict[str, str]:
    """transformers' sequence classifiers: model_type → architecture. Raises CheckpointError where it is missing."""
    try:
        import_module("transformers")
        names = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    except ImportError as error:
        raise CheckpointError(
            "This needs transformers: pip install 'assay[transformers]'. "
            f"Without it, these architectures run: {', '.join(ARCHITECTURES)}."
        ) from error
    return dict(names)


@dataclass(frozen=True, slots=True)
class Supported:
    """An architecture that runs. family: the file that holds it, or transformers' model_type. kind: what it is."""

    architecture: str
    family: str
    kind: Literal["classifier", "reward model", "reranker"]
    native: bool


def supported() -> list[Supported]:
    """Every architecture that runs here: the native ones, then transformers', where it is installed."""
    native = [
        Supported(name, module.rpartition(".")[2], _kind(name), native=True) for name, module in ARCHITECTURES.items()
    ]
    try:
        known = classifiers()
    except CheckpointError:
        return native
    by_length = sorted(known, key=len, reverse=True)  # gpt2 and gpt-sw3 are one architecture: the shorter name stays
    names = {known[kind]: kind for kind in by_length if kind not in UNSUPPORTED}
    rest = sorted(names.keys() - ARCHITECTURES.keys(), key=str.lower)
    return native + [Supported(name, names[name], "classifier", native=False) for name in rest]


def _kind(architecture: str) -> Literal["classifier", "reward model", "reranker"]:
    if "Reward" in architecture or "Normal_Weights" in architecture:
        return "reward model"
    return "reranker" if "ForCausalLM" in architecture else "classifier"


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The architecture of a config.json, as transformers names it.

    Raises CheckpointError where it is none of its sequence classifiers, or its classifier needs more than text.
    """
    model_type, named = str(raw.get("model_type")), [str(name) for name in raw.get("architectures") or []]
    ours = classifiers().get(model_type)
    said = f"config.json says architectures {named} and model_type {model_type!r}"
    tasks = [name for name in named if re.search(r"For[A-Z]|Head", name)]
    if tasks and not any("Sequence" in name for name in tasks):
        raise CheckpointError(f"{said}: that is no sequence classifier, so it has no labels to score.")
    if ours is None or (tasks and ours not in tasks):
        code = " It needs code from its repository (auto_map), which is never run." if raw.get("auto_map") else ""
        raise CheckpointError(
            f"{said}; neither assay nor transformers has such a sequence classifier (`assay models` lists them).{code}"
        )
    if model_type in UNSUPPORTED:
        raise CheckpointError(f"{said}: {ours} cannot score text alone: {UNSUPPORTED[model_type]}.")
    return ours


def load_reference(folder: Path, raw: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' own classification model with its config untouched, every parameter filled from the folder.

    Raises CheckpointError naming what is missing, left over or misshapen: a random head is never scored with.
    """
    architecture = architecture_of(raw)
    if raw.get("auto_map"):
        _log.warning("%s brings code of its own (auto_map); it is not run: transformers' own is.", folder)
    Checkpoint(folder)  # names a broken or missing file better than transformers does
    model, info = _from_pretrained(folder, dtype)
    num_labels = model.config.num_labels
    counts = {have[0] for _, have, want in info["mismatched_keys"] if want[0] == num_labels} - {num_labels}
    if len(counts) == 1:  # the head's own rows, not the config, say how many labels there are
        num_labels = counts.pop()
        if "id2label" in raw:
            label_names(raw, num_labels)  # says how the two disagree
        model, info = _from_pretrained(folder, dtype, num_labels)
    problems = [f"missing: {name}" for name in sorted(info["missing_keys"])]
    problems += [f"left over: {name}" for name in sorted(info["unexpected_keys"]) if not _IGNORED.fullmatch(name)]
    problems += [
        f"misshapen: {name} is {list(have)}, should be {list(want)}"
        for name, have, want in sorted(info["mismatched_keys"])
    ]
    if problems:
        more = f" … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{folder} does not fill transformers' {architecture}: {'; '.join(problems[:8])}{more}")
    return model.to(device).eval().requires_grad_(False)


def _from_pretrained(folder: Path, dtype: torch.dtype, num_labels: int | None = None) -> tuple[Any, dict[str, Any]]:
    transformers = import_module("transformers")
    settings = {"trust_remote_code": False, "local_files_only": True}
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, **settings)
            if num_labels is not None:
                config.num_labels = num_labels
            loaded: tuple[Any, dict[str, Any]] = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are told, by name
                **settings,
            )
    except LOAD_ERRORS as error:
        raise CheckpointError(f"transformers cannot load {folder}: {first_line(error)}") from error
    return loaded


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bar and no load report meanwhile: what they would say is said by our errors."""
    logs = transformers.utils.logging
    verbosity, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if bar:
            logs.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_reference_tokenizer(folder: Path) -> Any:
    """transformers' own tokenizer of a checkpoint. Raises CheckpointError where it cannot load one."""
    transformers = import_module("transformers")
    try:
        with _quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"transformers cannot load the tokenizer of {folder}: {first_line(error)}") from error
