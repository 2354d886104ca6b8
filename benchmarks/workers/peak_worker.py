"""The machine's own limit: matrix products of a model's shapes by torch's kernels. Run by benchmarks.contender.

Every product reads a different copy of its weights each time, as a model's layers do, so that none stays in the cache.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lines import answer
from torch import Tensor

ROWS = (1024, 2048)
_COPIES = 4
_SECONDS = 0.12  # for each kernel, shape and number of rows, in each round

Kernel = Callable[[Tensor, Any, Tensor], Any]


def _mm(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    return torch.mm(x, weight, out=out)


def _onednn(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class PeakWorker:
    def load(self, matrices: list[list[int]]) -> dict[str, Any]:
        self.weights = {}
        for size_in, size_out in matrices:
            plain = [torch.randn(size_out, size_in) for _ in range(_COPIES)]
            self.weights[size_in, size_out] = {
                "mm": [weight.t() for weight in plain],
                "mm-transposed": [weight.t().contiguous() for weight in plain],
                "onednn": [torch.ops.mkldnn._reorder_linear_weight(weight, max(ROWS)) for weight in plain],
            }
        return {"threads": torch.get_num_threads()}

    def peak(self) -> list[dict[str, Any]]:
        """GFLOP/s of each kernel, matrix and number of rows: medians."""
        found = []
        with torch.inference_mode():
            for (size_in, size_out), kernels in self.weights.items():
                for rows in ROWS:
                    x, out = torch.randn(rows, size_in), torch.empty(rows, size_out)
                    for name, weights in kernels.items():
                        seconds = self._seconds(_onednn if name == "onednn" else _mm, x, weights, out)
                        gflops = 2 * rows * size_in * size_out / seconds / 1e9
                        found.append({"kernel": name, "matrix": [size_in, size_out], "rows": rows, "gflops": gflops})
        return found

    def _seconds(self, kernel: Kernel, x: Tensor, weights: list[Any], out: Tensor) -> float:
        kernel(x, weights[0], out)
        taken: list[float] = []
        end = perf_counter() + _SECONDS
        while perf_counter() < end or len(taken) < 3:
            started = perf_counter()
            kernel(x, weights[len(taken) % _COPIES], out)
            taken.append(perf_counter() - started)
        return median(taken)


if __name__ == "__main__":
    worker = PeakWorker()
    answer({"load": worker.load, "peak": worker.peak})
