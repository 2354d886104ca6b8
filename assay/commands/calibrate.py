"""`assay calibrate`: probabilities that come true as often as they say, and a threshold for each label."""

from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.options import configured, options_of, with_options
from assay.config import EngineConfig
from assay.errors import ConfigError
from assay.evaluation.extra import require_extra
from assay.evaluation.settings import DataConfig
from assay.imports import importing_torch

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
    with importing_torch(own_process=True):
        from assay.commands.progress import model_bars
        from assay.commands.tables import print_calibration
        from assay.evaluation.calibrate import calibrate as run

    with model_bars() as watch:
        calibration, read_as = run(data, configured(EngineConfig, values), configured(DataConfig, values), watch)
    calibration.write(output)
    print_calibration(calibration, read_as, output)
