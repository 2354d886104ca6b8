"""`assay calibrate`: probabilities that come true as often as they say, and a threshold for each label."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.commands.options import configured, options_of, with_options
from assay.commands.progress import model_bars
from assay.config import EngineConfig
from assay.errors import ConfigError
from assay.evaluation.extra import require_extra
from assay.evaluation.settings import DataConfig

if TYPE_CHECKING:
    from assay.calibration import Calibration

_SETTINGS = (
    "model",
    "revision",
    "max_model_len",
    "dtype",
    "device",
    "quantization",
    "activation",
    "adapter",
    "allow_pickle",
    "classifier_from_token",
    "max_batch_tokens",
)
_TITLES = {"log_loss": "log loss", "ece": "calibration error (ECE)", "macro_f1": "macro F1"}


@with_options(*options_of(EngineConfig, only=_SETTINGS), *options_of(DataConfig))
def calibrate(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Files with texts and their labels, that the model was not trained on."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file that is written.", dir_okay=False)] = Path(
        "calibration.json"
    ),
    **values: Any,
) -> None:
    """Fit a correction of a model's probabilities to labelled data: one temperature where labels exclude each other,
    else a slope, an intercept and a threshold for each label.

    assay calibrate dev.csv -m ./my-checkpoint --label-column label -o calibration.json

    assay serve ./my-checkpoint --calibration calibration.json
    """
    if not output.parent.is_dir():
        raise ConfigError(f"There is no folder {output.parent} for {output.name}.")
    require_extra("calibrate")
    from assay.evaluation.calibrate import calibrate as run

    with model_bars() as watch:
        calibration, read_as = run(data, configured(EngineConfig, values), configured(DataConfig, values), watch)
    calibration.write(output)
    _print_summary(calibration, read_as, output)


def _print_summary(calibration: "Calibration", read_as: str, output: Path) -> None:
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
