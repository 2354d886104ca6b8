"""How much of everything is measured: in full, quickly, or just once through every step. Knows no measure.

Sized for two cores: FULL takes about half an hour, QUICK five minutes, SMOKE as long as the processes take to start.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Race:
    """One model in-process. rounds: of all contenders in turn. texts: of one pass, some seconds long in float32."""

    contenders: tuple[str, ...]
    rounds: int
    texts: int


@dataclass(frozen=True, slots=True)
class Plan:
    """races: by model. single_seconds: of single requests of one length, in each round. The rest by part: the model,
    how many rounds, and seconds of each measure in a round. quality_texts: None is all of dev.
    """

    name: str
    races: Mapping[str, Race]
    single_seconds: float
    served: str
    callers: tuple[int, ...]
    served_texts: int
    served_rounds: int
    served_seconds: float
    front_rounds: int
    front_seconds: float
    fairness: str
    fairness_seconds: float
    footprint: str
    footprint_rounds: int
    footprint_seconds: float
    quality_texts: int | None


_FLOAT = ("assay", "onnx", "openvino")
_INT8 = ("assay-int8", "onnx-int8")
_ALL = (*_FLOAT, "assay-deterministic", *_INT8)

FULL = Plan(
    name="full",
    races={
        "minilm": Race(_ALL, 5, 256),
        "bert-base": Race((*_ALL, "assay-bf16"), 5, 48),
        "deberta-v3-base": Race(_FLOAT, 3, 48),
        "modernbert-base": Race(_FLOAT, 3, 48),
        "qwen3-0.6b": Race((*_FLOAT, *_INT8), 3, 24),
    },
    single_seconds=0.3,
    served="minilm",
    callers=(1, 4, 16, 64, 256),
    served_texts=1024,
    served_rounds=3,
    served_seconds=3.0,
    front_rounds=9,
    front_seconds=2.0,
    fairness="minilm",
    fairness_seconds=45.0,
    footprint="bert-base",
    footprint_rounds=3,
    footprint_seconds=6.0,
    quality_texts=None,
)
QUICK = Plan(
    name="quick",
    races={"minilm": Race(_ALL, 1, 128), "bert-base": Race(_ALL, 1, 32)},
    single_seconds=0.2,
    served="minilm",
    callers=(1, 16, 64),
    served_texts=512,
    served_rounds=1,
    served_seconds=2.0,
    front_rounds=1,
    front_seconds=1.0,
    fairness="minilm",
    fairness_seconds=10.0,
    footprint="minilm",
    footprint_rounds=1,
    footprint_seconds=2.0,
    quality_texts=1000,
)
SMOKE = Plan(
    name="smoke",
    races={"tiny": Race(_ALL, 1, 16)},
    single_seconds=0.05,
    served="tiny",
    callers=(1, 16),
    served_texts=64,
    served_rounds=1,
    served_seconds=0.5,
    front_rounds=1,
    front_seconds=0.3,
    fairness="tiny",
    fairness_seconds=1.0,
    footprint="tiny",
    footprint_rounds=1,
    footprint_seconds=0.5,
    quality_texts=50,
)


def say(line: str) -> None:
    """A progress line."""
    print(time.strftime("%H:%M:%S"), line, flush=True)
