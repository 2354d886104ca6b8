"""ONNX Runtime in its own process, on the graph that torch exports and onnxruntime.transformers fuses.

Three ways, and the benchmark takes the fastest: each text alone with all threads; sorted and padded batches of 32; each
text alone with one thread, as many at once as there are cores. Run by benchmarks.contender, in its own environment.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from lines import answer, latencies, read_texts, timed
from tokenizers import Tokenizer

_BATCH = 32
_CORES = len(os.sched_getaffinity(0))


class OnnxWorker:
    def load(self, model: str, texts: str, options: dict[str, Any]) -> dict[str, Any]:
        path = graph(Path(model), **options)
        self.whole, self.single = session(path, _CORES), session(path, 1)
        self.tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
        self.tokenizer.no_padding()
        self.pad = json.loads(Path(model, "config.json").read_text("utf-8")).get("pad_token_id") or 0
        self.pool = ThreadPoolExecutor(_CORES)
        self.texts = read_texts(texts)
        modes = ["one by one", "sorted batches of 32", f"{_CORES} at once"]
        return {"modes": modes, "graph": path.name, "version": ort.__version__}

    def score(self, mode: str, every: int = 1) -> dict[str, float]:
        texts = self.texts[::every]
        return timed(lambda: self._score(mode, texts))

    def latency(self, text: str, seconds: float) -> list[float]:
        return latencies(lambda: self._run(self.whole, [self.tokenizer.encode(text).ids]), seconds)

    def logits(self, count: int) -> list[list[float]]:
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(self.texts[:count])]
        return [self._run(self.whole, [one])[0].tolist() for one in ids]

    def _score(self, mode: str, texts: list[str]) -> None:
        encodings = self.tokenizer.encode_batch_fast(texts)
        ids = sorted((encoding.ids for encoding in encodings), key=len)
        if mode == "one by one":
            for one in ids:
                self._run(self.whole, [one])
        elif mode.startswith("sorted"):
            for start in range(0, len(ids), _BATCH):
                self._run(self.whole, ids[start : start + _BATCH])
        else:  # longest first, so that no core is left with a long one at the end
            list(self.pool.map(lambda one: self._run(self.single, [one]), reversed(ids)))

    def _run(self, session: ort.InferenceSession, ids: list[list[int]]) -> Any:
        longest = max(map(len, ids))
        rows = np.array([one + [self.pad] * (longest - len(one)) for one in ids], dtype=np.int64)
        mask = np.array([[1] * len(one) + [0] * (longest - len(one)) for one in ids], dtype=np.int64)
        return session.run(None, {"input_ids": rows, "attention_mask": mask})[0]


def graph(model: Path, onnx_type: str, int8: bool) -> Path:
    """The graph's file, made at the first call, which takes minutes for a large model."""
    path = exported(model, onnx_type)
    return quantized(path) if int8 else path


def export(model: str, options: dict[str, Any]) -> str:
    return graph(Path(model), **options).name


def session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantized(path: Path) -> Path:
    """Dynamic int8, each output channel with its own scale."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name(f"{path.stem}-int8.onnx")
    if not target.is_file():
        quantize_dynamic(
            path,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={
                "DefaultTensorType": TensorProto.FLOAT
            },  # of what fused operators give, which it cannot infer
        )
    return target


def exported(folder: Path, onnx_type: str) -> Path:
    """Fused where onnxruntime.transformers knows the model. Written once beside the checkpoint."""
    plain, fused = folder / "onnx" / "model.onnx", folder / "onnx" / "fused.onnx"
    if not plain.is_file():
        plain.parent.mkdir(exist_ok=True)
        _export(folder, plain)
    if not onnx_type:
        return plain
    if not fused.is_file():
        from onnxruntime.transformers.optimizer import optimize_model

        config = json.loads((folder / "config.json").read_text("utf-8"))
        sizes = {"num_heads": config["num_attention_heads"], "hidden_size": config["hidden_size"]}
        optimize_model(str(plain), onnx_type, **sizes, opt_level=1).save_model_to_file(str(fused), True)
    return fused


def _export(folder: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    class Logits(torch.nn.Module):
        """Token ids and mask → logits; nothing else in or out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            ).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    ids = torch.arange(5, 5 + 2 * 9).reshape(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    names = ["input_ids", "attention_mask"]
    part = target.with_suffix(".part")
    try:  # the older exporter's graphs are what the fusion knows
        axes = {name: {0: "batch", 1: "length"} for name in names}
        torch.onnx.export(
            Logits(),
            (ids, mask),
            str(part),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        part.rename(target)
    except Exception as error:
        print(f"the older exporter: {error}; trying torch.export", flush=True)
        batch, length = torch.export.Dim("batch", max=4096), torch.export.Dim("length", min=2, max=512)
        program = torch.onnx.export(
            Logits(),
            (ids, mask),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
            dynamo=True,
        )
        program.save(str(target), external_data=True)


if __name__ == "__main__":
    worker = OnnxWorker()
    commands = {"load": worker.load, "score": worker.score, "latency": worker.latency, "logits": worker.logits}
    answer({"export": export, **commands})
