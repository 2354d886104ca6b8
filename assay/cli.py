"""The command line: a file a command, in `commands`, whose heavy imports wait until the command runs."""

import os
import sys
from typing import Annotated

import typer

from assay import __version__
from assay.commands.calibrate import calibrate
from assay.commands.classify import classify
from assay.commands.evaluate import evaluate
from assay.commands.models import models
from assay.commands.serve import serve
from assay.commands.verify import verify
from assay.errors import AssayError
from assay.model.memory import keep_freed_memory

app = typer.Typer(
    help="Text classifiers, reward models and rerankers: served over HTTP, or scored on the spot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"assay {__version__}")
        raise typer.Exit


for command in (serve, classify, evaluate, calibrate, models, verify):
    app.command()(command)


def main() -> None:
    """Run the command line. An error of ours, or of a file or a disk, is one line on stderr and exit code 1."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # How long an idle thread of torch's looks out for work before it sleeps: some 0.1 ms. Shorter, and each layer
        # of a short text waits to be woken; longer, and the event loop lacks a core (docs/performance.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    if sys.platform == "linux" and len(os.sched_getaffinity(0)) == 1:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a second thread of its library would only take turns
    keep_freed_memory()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except AssayError as error:
        print(f"assay: {error.message}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # such as a full disk under stdout
        print(f"assay: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        _discard_unwritten()


def _discard_unwritten() -> None:
    """What a full disk has not taken would fail again when the interpreter ends, which makes the exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
