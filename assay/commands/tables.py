"""Tables and bars that commands print. Imported when there is something to print, since rich takes a moment."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.sequence import Prediction

if TYPE_CHECKING:
    from assay.calibration import Calibration
    from assay.verify import Verification

_TITLES = {"log_loss": "log loss", "ece": "calibration error (ECE)", "macro_f1": "macro F1"}


def print_bars(text: str, prediction: Prediction, labels: tuple[str, ...], top: int) -> None:
    """The largest scores as bars, longest first."""
    console = Console()
    console.print(Text(text, style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    scored = sorted(zip(labels, prediction.probs, strict=True), key=lambda pair: -pair[1])
    for label, prob in scored[: top or None]:
        bar = "█" * round(30 * prob) if 0 <= prob <= 1 else ""
        table.add_row(Text(label), f"{prob:.4f}", bar)
    console.print(table)


def print_calibration(calibration: "Calibration", read_as: str, output: Path) -> None:
    """What was fitted, what was not, and what it does to the rows that it was fitted to."""
    fitted = calibration.fitted_on
    print(f"{fitted.rows:,} rows; labels read as: {read_as}")
    if calibration.kind == "temperature":
        print(f"temperature {calibration.temperature:.4f}, for all {len(calibration.labels)} labels")
    else:
        left = [one for one in calibration.labels if one.note is not None]
        print(f"{len(calibration.labels) - len(left)} of {len(calibration.labels)} labels fitted")
        for one in left:
            print(f"{one.label} is left as it is: {one.note}")
    table = Table("on these same rows", "before", "after", box=None, pad_edge=False)
    for name, title in _TITLES.items():
        table.add_row(Text(title), *(f"{getattr(side, name):.4f}" for side in (fitted.before, fitted.after)))
    Console().print(table)
    print(f"→ {output}. On other rows: assay evaluate DATA -m MODEL --calibration {output}")


def print_verification(verification: "Verification") -> None:
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
