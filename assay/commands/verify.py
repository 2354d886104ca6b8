"""`assay verify`: are these the scores of transformers?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assay.commands.options import options_of, with_options
from assay.config import DType, EngineConfig
from assay.errors import ConfigError
from assay.imports import importing_torch

if TYPE_CHECKING:
    pass


@with_options(*options_of(EngineConfig, only=("revision", "device")))
def verify(
    model: Annotated[str, typer.Argument(help="A folder or a hub id.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare; may be repeated.")] = None,
    texts_file: Annotated[
        Path | None, typer.Option(help="A UTF-8 file, one text a line.", exists=True, dir_okay=False)
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the trunk; heads are float32.")] = "float32",
    **values: Any,
) -> None:
    """Compare a checkpoint's scores with those of transformers, on built-in samples or on your texts.

    Exit code 0 where every label agrees and the logits do within the tolerance, else 1.
    """
    with importing_torch(own_process=True):
        from assay.commands.tables import print_verification
        from assay.verify import SAMPLES
        from assay.verify import verify as run

    lines = texts_file.read_text("utf-8").splitlines() if texts_file else []
    texts = [*(text or []), *(line for line in lines if line.strip())]
    if texts_file and not texts:
        raise ConfigError(f"{texts_file} has no texts; write one a line.")
    verification = run(model, texts or SAMPLES, dtype=dtype, **values)
    print_verification(verification)
    raise typer.Exit(0 if verification.passed else 1)
