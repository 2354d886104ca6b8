"""`assay classify`: texts on the spot."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.commands.options import configured, options_of, with_options
from assay.config import EngineConfig
from assay.sequence import Prediction

_SETTINGS = (
    "model",
    "revision",
    "max_model_len",
    "truncate_prompt_tokens",
    "window",
    "dtype",
    "device",
    "activation",
    "adapter",
    "allow_pickle",
)


@with_options(*options_of(EngineConfig, only=_SETTINGS))
def classify(
    text: Annotated[list[str], typer.Option(help="A text to score; may be repeated.")],
    top: Annotated[int, typer.Option(help="Labels to show for each text; 0 shows all.", min=0)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with every label.")] = False,
    **values: Any,
) -> None:
    """Score texts on the spot.

    assay classify --text "Loved the new café—coffee was great."

    assay classify -m unitary/toxic-bert --text "You are lovely." --text "Go away." --json
    """
    from assay.classifier import Classifier

    with Classifier(configured(EngineConfig, values)) as classifier:
        predictions = classifier.classify(text)
        if as_json:
            for one_text, prediction in zip(text, predictions, strict=True):
                probs = dict(zip(classifier.labels, prediction.probs, strict=True))
                print(json.dumps({"text": one_text, "label": prediction.label, "probs": probs}, ensure_ascii=False))
        else:
            for one_text, prediction in zip(text, predictions, strict=True):
                _print_bars(one_text, prediction, classifier.labels, top)


def _print_bars(text: str, prediction: Prediction, labels: tuple[str, ...], top: int) -> None:
    """The largest scores as bars, longest first."""
    console = Console()
    console.print(Text(text, style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    scored = sorted(zip(labels, prediction.probs, strict=True), key=lambda pair: -pair[1])
    for label, prob in scored[: top or None]:
        bar = "█" * round(30 * prob) if 0 <= prob <= 1 else ""
        table.add_row(Text(label), f"{prob:.4f}", bar)
    console.print(table)
