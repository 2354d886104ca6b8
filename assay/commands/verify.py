"""`assay verify`: are these the scores of transformers?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.commands.options import options_of, with_options
from assay.config import DType, EngineConfig
from assay.errors import ConfigError

if TYPE_CHECKING:
    from assay.verify import Verification


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
    from assay.verify import SAMPLES
    from assay.verify import verify as run

    lines = texts_file.read_text("utf-8").splitlines() if texts_file else []
    texts = [*(text or []), *(line for line in lines if line.strip())]
    if texts_file and not texts:
        raise ConfigError(f"{texts_file} has no texts; write one a line.")
    verification = run(model, texts or SAMPLES, dtype=dtype, **values)
    _print_verification(verification)
    raise typer.Exit(0 if verification.passed else 1)


def _print_verification(verification: "Verification") -> None:
    """A line a text, then the sum of it."""
    table = Table("text", "tokens", "same ids", "label", "transformers", "max |Δlogit|", box=None, pad_edge=False)
    for row in verification.comparisons:
        same = {True: "yes", False: "NO", None: "?"}[row.same_token_ids]
        shown = Text(" ".join(row.text.split())[:40])
        names = Text(row.label), Text(row.reference_label)
        table.add_row(shown, str(row.num_tokens), same, *names, f"{row.difference:.1e}")
    Console().print(table)
    differing = sum(row.same_token_ids is False for row in verification.comparisons)
    if verification.tokenizer_problem:
        print(f"Token ids were not compared: {verification.tokenizer_problem}")
    elif differing:
        print(f"Token ids: transformers' tokenizer gives others for {differing} of {len(verification.comparisons)}.")
    print(
        f"{verification.architecture} in {verification.dtype}: max |Δlogit| {verification.max_difference:.1e} "
        f"(at most {verification.tolerance:.1e} may be), labels agree on {verification.agreement:.0%}: "
        f"{'the same scores as transformers' if verification.passed else 'NOT the same scores as transformers'}"
    )
