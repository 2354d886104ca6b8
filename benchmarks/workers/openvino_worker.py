"""OpenVINO in its own process, on the ONNX graph that onnx_worker.py has written (plain, since it fuses by itself).

Two ways, and the benchmark takes the faster: each text alone with all threads; each text alone in as many streams as
OpenVINO chooses for throughput. Run by benchmarks.contender, in its own environment.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from lines import answer, latencies, read_texts, timed
from tokenizers import Tokenizer


class OpenvinoWorker:
    def load(self, model: str, texts: str, options: dict[str, Any]) -> dict[str, Any]:
        path = Path(model) / "onnx" / "model.onnx"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the ONNX contender exports it, and has to run before")
        core = ov.Core()
        graph = core.read_model(path)
        precision = {"INFERENCE_PRECISION_HINT": "f32"}  # where the CPU has bfloat16, it would take that unasked
        self.whole = core.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", **precision})
        streams = core.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **precision})
        self.queue = ov.AsyncInferQueue(streams)
        self.tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
        self.tokenizer.no_padding()
        self.texts = read_texts(texts)
        return {"modes": ["one by one", f"{len(self.queue)} streams"], "version": ov.__version__}

    def score(self, mode: str, every: int = 1) -> dict[str, float]:
        texts = self.texts[::every]
        return timed(lambda: self._score(mode, texts))

    def latency(self, text: str, seconds: float) -> list[float]:
        return latencies(lambda: self.whole(inputs(self.tokenizer.encode(text).ids)), seconds)

    def logits(self, count: int) -> list[list[float]]:
        encodings = self.tokenizer.encode_batch(self.texts[:count])
        return [self.whole(inputs(encoding.ids))[0][0].tolist() for encoding in encodings]

    def _score(self, mode: str, texts: list[str]) -> None:
        ids = sorted((encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)), key=len, reverse=True)
        if mode == "one by one":
            for one in ids:
                self.whole(inputs(one))
            return
        for one in ids:
            self.queue.start_async(inputs(one))
        self.queue.wait_all()


def inputs(ids: list[int]) -> dict[str, Any]:
    return {"input_ids": np.array([ids], dtype=np.int64), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}


if __name__ == "__main__":
    worker = OpenvinoWorker()
    answer({"load": worker.load, "score": worker.score, "latency": worker.latency, "logits": worker.logits})
