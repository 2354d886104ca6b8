"""KServe: V1, POST /v1/models/{model}:predict, and the Open Inference Protocol (V2), POST /v2/models/{model}/infer.

A V1 prediction is an object of label index → score, as KServe's own Hugging Face runtime with --return_probabilities;
GET /model_info has the names. V2 reads one BYTES tensor of texts, [n] or [n, 1], or of pairs, [n, 2], and gives `label`
(BYTES [n]), `probs` and `logits` (FP32 [n, labels], row by row), all of them or those that `outputs` names.
Each model has one version, "1", which paths may name or leave out. `parameters` and binary tensors are not read.
Source: kserve/open-inference-protocol, inference_rest.md. What GET answers is here too; server/kserve.py serves it.
"""

from math import prod
from typing import Any, Literal

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, decode
from assay.errors import AssayError, ModelNotFoundError, RequestError
from assay.sequence import Options, TextPrompt

VERSION = "1"


class Pair(msgspec.Struct):
    text: str
    text_pair: str | None = None


class PredictRequest(msgspec.Struct):
    """`inputs` is the other name of `instances`."""

    instances: list[str | Pair] | None = None
    inputs: list[str | Pair] | None = None


class PredictResponse(msgspec.Struct):
    predictions: list[dict[str, float]]


class InputTensor(msgspec.Struct):
    """data: flat, or nested as `shape` says; rows come one after the other either way."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | list[str]]


class RequestedOutput(msgspec.Struct):
    name: Literal["label", "probs", "logits"]


class InferRequest(msgspec.Struct):
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    id: str | None = None


class OutputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any]


class InferResponse(msgspec.Struct):
    model_name: str
    id: str
    outputs: list[OutputTensor]


class ErrorResponse(msgspec.Struct):
    error: str


class ServerMetadata(msgspec.Struct):
    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct):
    live: bool


class Ready(msgspec.Struct):
    """The protocol's text calls it `live` here too; KServe's own server and client say `ready`."""

    ready: bool


class ModelReady(msgspec.Struct):
    name: str
    ready: bool


class MetadataTensor(msgspec.Struct):
    """shape: -1 is as many as the request has."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: list[MetadataTensor]
    outputs: list[MetadataTensor]


def model_metadata(name: str, num_labels: int) -> ModelMetadata:
    """What `parse_infer` reads and `render_infer` writes. Texts are [n] here; pairs, [n, 2], are read as well."""
    outputs = [
        MetadataTensor("label", "BYTES", [-1]),
        MetadataTensor("probs", "FP32", [-1, num_labels]),
        MetadataTensor("logits", "FP32", [-1, num_labels]),
    ]
    return ModelMetadata(name, [VERSION], "assay_pytorch", [MetadataTensor("text", "BYTES", [-1])], outputs)


def check_version(version: str | None) -> None:
    if version not in (None, VERSION):
        raise ModelNotFoundError(f"The model has no version `{version}`; it has `{VERSION}`.", param="version")


def parse_predict(incoming: Incoming) -> Call:
    request = decode(incoming.body, PredictRequest)
    if request.instances is not None and request.inputs is not None:
        raise RequestError("Both `instances` and `inputs` are given; send one.", param="inputs")
    items = request.instances or request.inputs
    if not items:
        raise RequestError("`instances` is missing or empty; send at least one text.", param="instances")
    prompts = [TextPrompt(item) if isinstance(item, str) else TextPrompt(item.text, item.text_pair) for item in items]
    return _call(incoming, prompts)


def _call(incoming: Incoming, prompts: list[TextPrompt], request_id: str | None = None, context: Any = None) -> Call:
    for index, prompt in enumerate(prompts):
        if not prompt.text.strip():
            raise RequestError(f"The text at index {index} is empty or whitespace only.")
    return Call([*prompts], Options(), incoming.path["model"], request_id, context)


def render_predict(answer: Answer) -> PredictResponse:
    return PredictResponse(
        [{str(index): score for index, score in enumerate(prediction.probs)} for prediction in answer.predictions]
    )


def parse_infer(incoming: Incoming) -> Call:
    check_version(incoming.path.get("version"))
    request = decode(incoming.body, InferRequest)
    if len(request.inputs) != 1:
        raise RequestError(f"There are {len(request.inputs)} input tensors; send one, of texts.", param="inputs")
    return _call(incoming, _prompts(request.inputs[0]), request.id, request.outputs)


def _prompts(tensor: InputTensor) -> list[TextPrompt]:
    if tensor.datatype != "BYTES":
        raise RequestError(f"The input's datatype is {tensor.datatype!r}; it must be BYTES, texts.", param="datatype")
    shape = tensor.shape
    width = shape[1] if len(shape) == 2 else 1
    if len(shape) not in (1, 2) or min(shape) < 1 or width > 2:
        raise RequestError(
            f"The input's shape is {shape}; it must be [n] or [n, 1] for texts, [n, 2] for pairs.", param="shape"
        )
    texts = [text for row in tensor.data for text in ([row] if isinstance(row, str) else row)]
    if len(texts) != prod(shape) or any(isinstance(row, list) and len(row) != width for row in tensor.data):
        raise RequestError(f"The input's data holds {len(texts)} texts, which is not its shape {shape}.", param="data")
    return [TextPrompt(*texts[start : start + width]) for start in range(0, len(texts), width)]


def render_infer(answer: Answer) -> InferResponse:
    predictions, labels = answer.predictions, len(answer.labels)
    count = len(predictions)
    outputs = [
        OutputTensor("label", [count], "BYTES", [prediction.label for prediction in predictions]),
        OutputTensor("probs", [count, labels], "FP32", [p for prediction in predictions for p in prediction.probs]),
        OutputTensor("logits", [count, labels], "FP32", [x for prediction in predictions for x in prediction.logits]),
    ]
    wanted = {output.name for output in answer.call.context or outputs}
    return InferResponse(
        model_name=answer.model,
        id=answer.call.request_id or answer.request_id,
        outputs=[output for output in outputs if output.name in wanted],
    )


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(error.message)


PREDICT = Dialect(
    name="kserve_predict",
    paths=("/v1/models/{model:path}:predict",),
    parse=parse_predict,
    render=render_predict,
    render_error=render_error,
    request=PredictRequest,
    response=PredictResponse,
    error=ErrorResponse,
    summary="A score for each label index of each text (KServe V1)",
    example={"instances": ["Loved the new café—coffee was great."]},
)

INFER = Dialect(
    name="kserve_infer",
    paths=("/v2/models/{model:path}/versions/{version}/infer", "/v2/models/{model:path}/infer"),
    prefixes=("/v2/models/", "/v2/health/"),
    parse=parse_infer,
    render=render_infer,
    render_error=render_error,
    request=InferRequest,
    response=InferResponse,
    error=ErrorResponse,
    summary="Labels, probabilities and logits as tensors (KServe V2, Open Inference Protocol)",
    example={
        "inputs": [
            {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Loved the new café—coffee was great."]}
        ]
    },
)
