"""Checkpoints from the Hugging Face hub, or its cache on this machine. Knows names of files, not what is in them."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx or httpx2, by version
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from assay.errors import CheckpointError

_FILES = ["*.json", "*.safetensors", "*.jinja", "vocab.txt", "merges.txt", "*.model"]
# Folders hold other formats; but 1_LogitScore/config.json says which tokens are a reranker's answers.
_NOT_FILES = ["[!1]*/*", "*/*.safetensors", "*/*.bin"]
_PICKLES = ["pytorch_model*.bin"]


def fetch(model: str, revision: str | None, allow_pickle: bool) -> Path:
    """The folder of a hub id, downloaded (with progress) or taken from the cache. allow_pickle: `.bin` files too.

    Raises CheckpointError when it cannot be had.
    """
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=[*_FILES, *(_PICKLES if allow_pickle else [])],
                ignore_patterns=_NOT_FILES,
            )
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{model} is neither a folder nor in the local hub cache, and the hub cannot be reached."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{model} has no revision {revision!r} on the hub.") from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model} is gated: accept its terms on the hub, then `hf auth login` on this machine."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{model} is neither a folder nor a repository on the hub (a private one needs `hf auth login`)."
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{model} could not be fetched from the hub: {reason}") from error
