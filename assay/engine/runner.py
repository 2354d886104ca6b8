"""One batch through one model on one device: pack, forward, calibrate, activate, copy back.

Knows no queue, thread or future.
"""

import math
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.config import Activation
from assay.errors import AssayError, InternalError
from assay.model.batch import PackedBatch, pack
from assay.model.heads import activate
from assay.model.registry import LoadedModel
from assay.sequence import Prediction, Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences in the order in which they are packed: by length, so that equal lengths are neighbours."""

    sequences: list[Sequence]
    packed: PackedBatch


def form(sequences: Seq[Sequence]) -> Batch:
    """Sort and pack on the host."""
    ordered = sorted(sequences, key=lambda sequence: sequence.num_tokens)
    return Batch(ordered, pack(ordered))


class ModelRunner:
    """Runs batches of one model. Called from one thread at a time."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._correction: tuple[Tensor, Tensor] | None = None
        if (calibration := model.calibration) is not None:
            slopes = torch.tensor(calibration.slopes, dtype=torch.float32, device=model.device)
            intercepts = torch.tensor(calibration.intercepts, dtype=torch.float32, device=model.device)
            self._correction = slopes, intercepts

    def warm_up(self) -> None:
        """One small forward, so that the first caller does not pay for the first touch of weights and kernels."""
        self.run(form([Sequence([0] * length) for length in (1, min(8, self.model.max_positions))]))

    def recover(self, error: Exception) -> bool:
        """After `run` failed: whether memory ran out, and a smaller batch may do. Raises where nothing works now."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            return True
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # torch has no class for a CPU's
            return True
        self.warm_up()
        return False

    def run(self, batch: Batch) -> list[Prediction | AssayError]:
        """One answer for each sequence, in the batch's order; an error where the model's logits are not finite."""
        started = time.monotonic()
        with torch.inference_mode():
            logits = self.model.module(batch.packed.to(self.model.device))
            kinds = {sequence.activation for sequence in batch.sequences}
            corrected = {kind: self._corrected(logits, kind) for kind in kinds}
            final = {kind: logits if x is None else x for kind, x in corrected.items()}
            probs = {kind: activate(x, kind, self.model.deterministic).tolist() for kind, x in final.items()}
            best = {kind: x.argmax(dim=-1).tolist() for kind, x in final.items()}
            calibrated = {kind: x.tolist() for kind, x in corrected.items() if x is not None}
            rows = logits.tolist()
        assert len(rows) == len(batch.sequences), "a model answers each sequence once"
        seconds = time.monotonic() - started
        answers: list[Prediction | AssayError] = []
        for i, sequence in enumerate(batch.sequences):
            sequence.timings.queue += started - sequence.arrival
            sequence.timings.inference = seconds
            if not math.isfinite(sum(rows[i])):  # of float32, whose finite sums are float64's too
                answers.append(
                    InternalError("The model's scores for this input are not finite numbers (NaN or infinity).")
                )
                continue
            kind = sequence.activation
            own = calibrated[kind][i] if kind in calibrated else None
            label = self.model.labels[best[kind][i]]
            answers.append(
                Prediction(label, probs[kind][i], rows[i], sequence.num_tokens, sequence.timings, calibrated=own)
            )
        return answers

    def _corrected(self, logits: Tensor, kind: Activation) -> Tensor | None:
        """logits [seqs, labels] as the calibration has them; None where none was fitted for this activation."""
        calibration = self.model.calibration
        if calibration is None or self._correction is None or kind != calibration.activation:
            return None
        slopes, intercepts = self._correction
        return logits * slopes + intercepts
