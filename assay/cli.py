"""The command line, a function a command. The only reader of the environment; heavy imports wait for their command."""

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay import __version__
from assay.config import ActivationChoice, Device, DType, EngineConfig, LogLevel, ServerConfig
from assay.errors import AssayError, ConfigError
from assay.sequence import Prediction

if TYPE_CHECKING:
    from assay.verify import Verification

app = typer.Typer(
    help="Text classifiers, reward models and rerankers: served over HTTP, or scored on the spot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_ENGINE = EngineConfig()
_SERVER = ServerConfig()

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
DTypeOption = Annotated[DType, typer.Option(help="Precision of the trunk; heads are float32. auto: float32 on a CPU.")]
DeviceOption = Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest input in tokens. Default: the checkpoint's own limit.")]
ChatTemplate = Annotated[
    str | None, typer.Option(help="Jinja file, or the name of a shipped one, in place of the checkpoint's template.")
]
Adapter = Annotated[str | None, typer.Option(help="PEFT LoRA adapter to merge: a folder or a hub id.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin weights, as data only.")]
ClassifierFromToken = Annotated[
    str | None, typer.Option(help="For rerankers saved as language models: the answer tokens, e.g. no,yes.")
]
ActivationOption = Annotated[ActivationChoice, typer.Option(help="auto: what the checkpoint's config asks for.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"assay {__version__}")
        raise typer.Exit


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]MODEL]...",
            help="Folders or hub ids; options hold for all.",
            show_default="bundled emotions",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _SERVER.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = _SERVER.port,
    served_model_name: Annotated[str | None, typer.Option(help="Name in requests. Default: MODEL as given.")] = None,
    revision: Revision = None,
    max_model_len: MaxModelLen = None,
    dtype: DTypeOption = _ENGINE.dtype,
    device: DeviceOption = _ENGINE.device,
    activation: ActivationOption = _ENGINE.activation,
    truncate_prompt_tokens: Annotated[
        int | None, typer.Option(help="Cut longer inputs to this many tokens; -1: the model's length. Default: refuse.")
    ] = None,
    chat_template: ChatTemplate = None,
    classifier_from_token: ClassifierFromToken = None,
    adapter: Adapter = None,
    allow_pickle: AllowPickle = False,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens in one forward pass.")] = _ENGINE.max_batch_tokens,
    max_queue_tokens: Annotated[
        int, typer.Option(help="Tokens that may wait; over it: 429.")
    ] = _ENGINE.max_queue_tokens,
    drain_timeout: Annotated[float, typer.Option(help="Seconds to answer what was accepted, after SIGTERM.")] = (
        _SERVER.drain_timeout
    ),
    log_level: Annotated[LogLevel, typer.Option(help="What is written to stderr.")] = _SERVER.log_level,
) -> None:
    """Serve models over HTTP: POST /v1/classify, and the other callers' paths.

    assay serve

    assay serve unitary/toxic-bert --port 9000

    assay serve ./my-checkpoint --served-model-name sentiment --max-model-len 256

    assay serve sentiment=./my-checkpoint toxic=unitary/toxic-bert
    """
    # Threads that spin between layers take the core that the event loop needs: 8 % of throughput on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server_config = ServerConfig(
        host=host, port=port, served_model_name=served_model_name, drain_timeout=drain_timeout, log_level=log_level
    )
    engine_config = EngineConfig(
        revision=revision,
        max_model_len=max_model_len,
        dtype=dtype,
        device=device,
        activation=activation,
        truncate_prompt_tokens=truncate_prompt_tokens,
        chat_template=chat_template,
        classifier_from_token=classifier_from_token,
        adapter=adapter,
        allow_pickle=allow_pickle,
        max_batch_tokens=max_batch_tokens,
        max_queue_tokens=max_queue_tokens,
    )
    from assay.server.serve import serve as run

    run(server_config, [_named(engine_config, model) for model in models or [engine_config.model]])


def _named(config: EngineConfig, argument: str) -> EngineConfig:
    """`NAME=MODEL`, or a model that is called what it is."""
    name, equals, model = argument.partition("=")
    if not equals or Path(argument).exists():
        return replace(config, model=argument)
    return replace(config, model=model, name=name or None)


@app.command()
def classify(
    text: Annotated[list[str], typer.Option(help="A text to score; may be repeated.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder or a hub id.", show_default="the bundled emotions")
    ] = _ENGINE.model,
    revision: Revision = None,
    max_model_len: MaxModelLen = None,
    dtype: DTypeOption = _ENGINE.dtype,
    device: DeviceOption = _ENGINE.device,
    activation: ActivationOption = _ENGINE.activation,
    adapter: Adapter = None,
    allow_pickle: AllowPickle = False,
    top: Annotated[int, typer.Option(help="Labels to show for each text; 0 shows all.", min=0)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with every label.")] = False,
) -> None:
    """Score texts on the spot.

    assay classify --text "Loved the new café—coffee was great."

    assay classify -m unitary/toxic-bert --text "You are lovely." --text "Go away." --json
    """
    from assay.classifier import Classifier

    config = EngineConfig(
        model=model,
        revision=revision,
        max_model_len=max_model_len,
        dtype=dtype,
        device=device,
        activation=activation,
        adapter=adapter,
        allow_pickle=allow_pickle,
    )
    with Classifier(config) as classifier:
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


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the architectures that run, and how: natively, or through transformers."""
    from assay.model.reference import supported

    architectures = supported()
    if as_json:
        for entry in architectures:
            print(json.dumps(asdict(entry)))
        return
    rows = [("architecture", "family", "kind", "runs")]
    for entry in architectures:
        how = "natively, packed" if entry.native else "through transformers"
        rows.append((entry.architecture, entry.family, entry.kind, how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # no table of rich's: it would cut the names to the terminal's width
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if all(entry.native for entry in architectures):
        print("\nMore run through transformers, where it is installed: pip install 'assay[transformers]'")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="A folder or a hub id.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare; may be repeated.")] = None,
    texts_file: Annotated[
        Path | None, typer.Option(help="A UTF-8 file, one text a line.", exists=True, dir_okay=False)
    ] = None,
    revision: Revision = None,
    dtype: DTypeOption = "float32",
    device: DeviceOption = _ENGINE.device,
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
    verification = run(model, texts or SAMPLES, revision=revision, dtype=dtype, device=device)
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


def main() -> None:
    """Run the command line. An error of ours is one line on stderr and exit code 1."""
    # torch tells everyone without NumPy that it is missing; nothing here uses it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        app()
    except AssayError as error:
        print(f"assay: {error.message}", file=sys.stderr)
        sys.exit(1)
