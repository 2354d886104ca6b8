"""`assay models`: what runs, and how."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from assay.imports import importing_torch


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the architectures that run, and how: natively, or through transformers."""
    with importing_torch(own_process=True):
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
