"""What int8 does to the scores of a trained model: the bundled one on GoEmotions' dev split, float32 against int8.

    python -m benchmarks.quality [--texts 1000]

The threshold is float32's best on these texts, for both, so that only the arithmetic differs.
"""

import argparse
import json
from typing import Any

from assay.config import BUNDLED_MODEL
from benchmarks import workload
from benchmarks.contender import Contender, Process
from benchmarks.models import REPOSITORY
from benchmarks.plan import say

GOEMOTIONS = REPOSITORY.parent / "shared" / "data" / "goemotions"


def measure(texts: int | None) -> dict[str, Any]:
    """Flips and macro-F1; {"skipped": why} where the data is not at hand. texts: None is all of them."""
    if not (GOEMOTIONS / "dev.tsv").is_file():
        return {"skipped": "GoEmotions (dev.tsv, labels.txt) is not at hand in ../shared/data/goemotions"}
    from training.goemotions import read_split

    split = read_split(GOEMOTIONS, "dev")
    chosen = split.texts[:texts]
    return compare(split.targets[: len(chosen)].tolist(), _logits(chosen, "none"), _logits(chosen, "int8"))


def compare(targets: list[list[float]], plain: list[list[float]], int8: list[list[float]]) -> dict[str, Any]:
    """All [texts, labels]; targets are 0 or 1, the others logits."""
    import numpy as np
    from sklearn.metrics import f1_score

    from training.scores import best_threshold

    truth = np.asarray(targets, dtype=np.float32)
    logits = np.asarray(plain, dtype=np.float32), np.asarray(int8, dtype=np.float32)
    probs = [(1 / (1 + np.exp(-one))).astype(np.float32) for one in logits]
    threshold = best_threshold(truth, probs[0])
    f1 = [float(f1_score(truth, one >= threshold, average="macro", zero_division=0)) for one in probs]
    return {
        "texts": len(truth),
        "labels": truth.shape[1],
        "top_label_flips": round(float((logits[0].argmax(1) != logits[1].argmax(1)).mean()), 5),
        "decision_flips": round(float(((probs[0] >= threshold) != (probs[1] >= threshold)).mean()), 5),
        "threshold": threshold,
        "macro_f1": {"float32": round(f1[0], 4), "int8": round(f1[1], 4), "difference": round(f1[1] - f1[0], 4)},
        "mean_logit_difference": round(float(np.abs(logits[0] - logits[1]).mean()), 4),
        "largest_logit_difference": round(float(np.abs(logits[0] - logits[1]).max()), 3),
    }


def _logits(texts: list[str], quantization: str) -> list[list[float]]:
    say(f"the bundled model, quantization {quantization}: {len(texts)} texts")
    path = workload.saved("goemotions-dev", texts)
    with Process(Contender(f"quality-{quantization}", "assay_worker")) as process:
        process.ask("load", model=str(BUNDLED_MODEL), texts=str(path), options={"quantization": quantization})
        answer: list[list[float]] = process.ask("logits", count=len(texts))
    return answer


def table(report: dict[str, Any]) -> str:
    """For the terminal."""
    return json.dumps(report, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, help="only so many")
    print(table(measure(parser.parse_args().texts)))


if __name__ == "__main__":
    main()
