"""Reward models that transformers lacks, against references written out plainly here: one sequence, dense, unpacked."""

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from assay import Classifier
from assay.errors import CheckpointError
from assay.model.batch import pack
from assay.model.registry import load_model
from assay.sequence import Sequence
from tests.tiny import load_plain, randomize, save_bert_tokenizer
from tests.tiny_decoders import BASE, VOCAB, rewrite_config

TOLERANCE = 1e-4
BITES = 1e-2
LENGTHS = (17, 1, 60, 8, 16, 17, 8)
HIDDEN = BASE["hidden_size"]

Tensors = dict[str, Tensor]
Reference = Callable[[list[int]], float]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small lose more to waking threads than they gain by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def texts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in LENGTHS]


def random_matrix(generator: torch.Generator, *shape: int) -> Tensor:
    return 1.5 * torch.randn(shape, generator=generator) / shape[-1] ** 0.5


def save(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


# InternLM2: the trunk by hand, from tensors as they are named and laid out in its checkpoints.
INTERNLM2: dict[str, Any] = {
    "architectures": ["InternLM2ForRewardModel"],
    "model_type": "internlm2",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "bias": False,
    "hidden_act": "silu",
    "reward_token_id": 5,
    "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
}


def internlm2_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    heads, kv_heads, inner = config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]
    head_dim = HIDDEN // heads
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (VOCAB, HIDDEN), "v_head.weight": (1, HIDDEN)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "attention.wqkv.weight": ((heads + 2 * kv_heads) * head_dim, HIDDEN),
            layer + "attention.wo.weight": (HIDDEN, heads * head_dim),
            layer + "feed_forward.w1.weight": (inner, HIDDEN),
            layer + "feed_forward.w3.weight": (inner, HIDDEN),
            layer + "feed_forward.w2.weight": (HIDDEN, inner),
            layer + "attention_norm.weight": (HIDDEN,),
            layer + "ffn_norm.weight": (HIDDEN,),
        }
        if config.get("bias", True):
            shapes |= {
                layer + "attention.wqkv.bias": ((heads + 2 * kv_heads) * head_dim,),
                layer + "attention.wo.bias": (HIDDEN,),
            }
    shapes["model.norm.weight"] = (HIDDEN,)
    tensors = {name: random_matrix(generator, *shape) for name, shape in shapes.items()}
    return {name: 1 + tensor if "norm" in name else tensor for name, tensor in tensors.items()}


def internlm2_reward(config: dict[str, Any], tensors: Tensors, token_ids: list[int]) -> float:
    """The facts in words, in loops: per KV head its query heads, then k, then v; one score at a time."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    group, head_dim, length = heads // kv_heads, HIDDEN // heads, len(token_ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return tensors[name] * x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def project(x: Tensor, name: str) -> Tensor:
        out = x @ tensors[name + ".weight"].T
        return out + tensors[name + ".bias"] if name + ".bias" in tensors else out

    theta, stretch = config["rope_theta"], 1.0
    scaling, trained = config["rope_scaling"] or {}, config["max_position_embeddings"]
    if scaling.get("type") == "linear":
        stretch = scaling["factor"]
    if scaling.get("type") == "dynamic" and length > trained:
        growth = scaling["factor"] * length / trained - (scaling["factor"] - 1)
        theta *= growth ** (head_dim / (head_dim - 2))

    def turn(vector: Tensor, position: int) -> Tensor:
        turned = torch.empty_like(vector)
        for i in range(head_dim // 2):
            angle = position / stretch / theta ** (2 * i / head_dim)
            a, b = vector[i], vector[i + head_dim // 2]
            turned[i] = a * math.cos(angle) - b * math.sin(angle)
            turned[i + head_dim // 2] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    x = tensors["model.tok_embeddings.weight"][token_ids]
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        wqkv = project(norm(x, layer + "attention_norm.weight"), layer + "attention.wqkv")
        seen = torch.empty(length, heads * head_dim)
        for kv in range(kv_heads):
            rows = wqkv[:, kv * (group + 2) * head_dim : (kv + 1) * (group + 2) * head_dim]
            *queries, k, v = rows.split(head_dim, dim=1)
            k = torch.stack([turn(k[position], position) for position in range(length)])
            for g, q in enumerate(queries):
                head = kv * group + g
                for position in range(length):
                    scores = k[: position + 1] @ turn(q[position], position) / math.sqrt(head_dim)
                    weights = scores.softmax(0)
                    seen[position, head * head_dim : (head + 1) * head_dim] = weights @ v[: position + 1]
        x = x + project(seen, layer + "attention.wo")
        y = norm(x, layer + "ffn_norm.weight")
        gate, up = project(y, layer + "feed_forward.w1"), project(y, layer + "feed_forward.w3")
        x = x + project(gate * torch.sigmoid(gate) * up, layer + "feed_forward.w2")
    return float(norm(x, "model.norm.weight")[-1] @ tensors["v_head.weight"][0])


INTERNLM2_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "bias": True},
    "6 kv heads": {"num_key_value_heads": 6},
    "1 kv head": {"num_key_value_heads": 1, "bias": True},
    "five labels": {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}},
}


def save_internlm2(folder: Path, name: str) -> Reference:
    config = INTERNLM2 | INTERNLM2_CASES[name]
    if name not in ("dynamic", "linear"):
        config["max_position_embeddings"] = 64
    tensors = internlm2_tensors(config)
    save(folder, config, tensors)
    return lambda token_ids: internlm2_reward(config, tensors, token_ids)


# Qwen2, Qwen3 and Llama: transformers' own trunk without a head; the heads by hand.
def save_with_head(folder: Path, architecture: str, trunk: Any, head: Tensors, **config: Any) -> Any:
    tensors = {f"model.{name}": tensor for name, tensor in trunk.state_dict().items()} | head
    save(folder, {**trunk.config.to_dict(), "architectures": [architecture], **config}, tensors)

    def last_hidden(token_ids: list[int]) -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = trunk(input_ids=torch.tensor([token_ids]), use_cache=False).last_hidden_state
        return hidden[0, -1]

    return last_hidden


def save_qwen(folder: Path, version: int, **config: Any) -> Reference:
    kind, settings = (Qwen2Model, Qwen2Config) if version == 2 else (Qwen3Model, Qwen3Config)
    own = {} if version == 2 else {"head_dim": 14}
    trunk = randomize(kind(settings(**BASE | own)), version)
    generator = torch.Generator().manual_seed(7)
    head = {
        "score.0.weight": random_matrix(generator, HIDDEN, HIDDEN),
        "score.0.bias": random_matrix(generator, HIDDEN) * 3,
        "score.2.weight": random_matrix(generator, 1, HIDDEN),
        "score.2.bias": torch.tensor([0.7]),
    }
    last = save_with_head(folder, f"Qwen{version}ForRewardModel", trunk, head, **config)

    def reward(token_ids: list[int]) -> float:
        dense = last(token_ids) @ head["score.0.weight"].T + head["score.0.bias"]
        return float(dense.clamp(min=0) @ head["score.2.weight"][0] + head["score.2.bias"][0])

    return reward


URM = "LlamaForSequenceClassificationWithNormal_Weights"


def selu(x: Tensor) -> Tensor:
    """Klambauer et al. 2017."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * torch.where(x > 0, x, alpha * (x.exp() - 1))


def save_urm(folder: Path, gate: tuple[int, int, int] = (20, 12, 5), half: bool = False, **config: Any) -> Reference:
    trunk = randomize(LlamaModel(LlamaConfig(**BASE)), 3)
    generator = torch.Generator().manual_seed(8)
    sizes = (HIDDEN, *gate)
    head = {"score.weight": random_matrix(generator, 2 * gate[-1], HIDDEN)}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        head[f"weights.fc.{2 * i}.weight"] = random_matrix(generator, n_out, n_in)
        head[f"weights.fc.{2 * i}.bias"] = 0.3 * torch.randn(n_out, generator=generator)
    if half:  # as in the published checkpoint, whose gate is in float16
        head = {name: tensor.half() if "fc" in name else tensor for name, tensor in head.items()}
    last = save_with_head(folder, URM, trunk, head, **config)
    wide = {name: tensor.float() for name, tensor in head.items()}

    def reward(token_ids: list[int]) -> float:
        hidden = last(token_ids)
        weights = hidden
        for i in (0, 2, 4):
            weights = weights @ wide[f"weights.fc.{i}.weight"].T + wide[f"weights.fc.{i}.bias"]
            weights = weights if i == 4 else selu(weights)
        scores = wide["score.weight"] @ hidden
        return sum(float(scores[2 * i] * weights[i]) for i in range(gate[-1]))

    return reward


def labels(count: int) -> dict[str, Any]:
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(count)}, "label2id": None}


CASES: dict[str, Callable[[Path], Reference]] = {
    **{f"internlm2 {name}": lambda folder, name=name: save_internlm2(folder, name) for name in INTERNLM2_CASES},
    "qwen2": lambda folder: save_qwen(folder, 2),
    "qwen2 one label, multi-label": lambda folder: save_qwen(
        folder, 2, problem_type="multi_label_classification", **labels(2)
    ),
    "qwen3": lambda folder: save_qwen(folder, 3),
    "urm five labels": lambda folder: save_urm(folder, **labels(5)),
    "urm ten labels": lambda folder: save_urm(folder, **labels(10)),
    "urm no labels": lambda folder: save_urm(folder, id2label=None, label2id=None),
    "urm other sizes": lambda folder: save_urm(folder, gate=(7, 30, 3), **labels(5)),
    "urm float16 gate": lambda folder: save_urm(folder, half=True, **labels(5)),
}


@pytest.mark.parametrize("name", CASES)
def test_rewards_equal_the_reference_alone_packed_and_reordered(name: str, tmp_path: Path) -> None:
    reference = CASES[name](tmp_path)
    expected = torch.tensor([[reference(text)] for text in texts()])
    assert expected.std() > 0.1, "rewards too small to show anything"
    module = load_model(tmp_path, dtype="float32", device="cpu").module
    sequences = [Sequence(text) for text in texts()]
    with torch.inference_mode():
        packed = module(pack(sequences))
        reordered = module(pack(sequences[::-1]))[list(range(len(sequences)))[::-1]]
        alone = torch.cat([module(pack([sequence])) for sequence in sequences])
    for rewards in (packed, reordered, alone):
        assert rewards.shape == expected.shape
        assert float((rewards - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["internlm2 five labels", "internlm2 plain", "qwen2 one label, multi-label", "qwen3", "urm ten labels"]
)
def test_the_reward_stays_raw(name: str, tmp_path: Path) -> None:
    """One label and no activation, whatever the config says: sigmoid(23) is 1.0 in float32, and ranks nothing."""
    reference = CASES[name](tmp_path)
    save_bert_tokenizer(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    assert (model.activation, model.labels) == ("none", ("LABEL_0",))
    with Classifier(str(tmp_path), dtype="float32", device="cpu") as classifier:
        predictions = classifier.classify(texts())
    for text, prediction in zip(texts(), predictions, strict=True):
        assert prediction.probs == prediction.logits == pytest.approx([reference(text)], abs=TOLERANCE)
        assert prediction.label == "LABEL_0"


def assert_broken(folder: Path, reference: Reference, change: Callable[[Any], None]) -> None:
    module = load_plain(folder, dtype="float32", device="cpu").module
    with torch.inference_mode():
        change(module)
        rewards = module(pack([Sequence(text) for text in texts()]))[:, 0]
    expected = torch.tensor([reference(text) for text in texts()])
    assert float((rewards - expected).abs().max()) > BITES


def regroup(module: Any) -> None:
    """wqkv read as all q, all k, all v, which its rows are not: undo the regrouping by KV head."""
    heads, kv_heads, dim = 6, 2, HIDDEN // 6
    order = torch.arange((heads + 2 * kv_heads) * dim).view(kv_heads, heads // kv_heads + 2, dim)
    grouped = torch.cat([order[:, :-2].flatten(), order[:, -2].flatten(), order[:, -1].flatten()])
    for layer in module.trunk.layers:
        layer.qkv.weight.data = layer.qkv.weight.data[grouped.argsort()]


def gate_up_swapped(module: Any) -> None:
    for layer in module.trunk.layers:
        gate, up = layer.mlp.up.weight.data.chunk(2)
        layer.mlp.up.weight.data = torch.cat([up, gate])


def no_relu(module: Any) -> None:
    module.head.dense.act = None


def no_dense_bias(module: Any) -> None:
    module.head.dense.bias.data.zero_()


def uncertainty_for_mean(module: Any) -> None:
    module.head.out.weight.data = module.head.out.weight.data.view(-1, 2, HIDDEN).flip(1).flatten(0, 1)


def halves_for_pairs(module: Any) -> None:
    """Means first and uncertainties after, and not in pairs."""
    weight = module.head.out.weight.data
    module.head.out.weight.data = weight.view(2, -1, HIDDEN).transpose(0, 1).flatten(0, 1)


def no_gate_bias(module: Any) -> None:
    module.head.gate[1].bias.data.zero_()


BREAKS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "wqkv grouping": ("internlm2 plain", regroup),
    "w1 and w3": ("internlm2 plain", gate_up_swapped),
    "relu off": ("qwen2", no_relu),
    "score.0 bias off": ("qwen3", no_dense_bias),
    "uncertainty for mean": ("urm five labels", uncertainty_for_mean),
    "halves for pairs": ("urm five labels", halves_for_pairs),
    "gate bias off": ("urm five labels", no_gate_bias),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_head_or_layout_is_seen(name: str, tmp_path: Path) -> None:
    case, change = BREAKS[name]
    assert_broken(tmp_path, CASES[case](tmp_path), change)


def test_a_missing_selu_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = CASES["urm five labels"](tmp_path)
    assert_broken(tmp_path, reference, lambda module: monkeypatch.setattr("assay.model.heads.selu", lambda x: x))


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_internlm2_rope_scaling_ignored_is_seen(kind: str, tmp_path: Path) -> None:
    reference = save_internlm2(tmp_path, kind)
    rewrite_config(tmp_path, lambda raw: raw.update(rope_scaling=None))
    assert_broken(tmp_path, reference, lambda module: None)


def test_internlm2_has_biases_unless_its_config_says_no(tmp_path: Path) -> None:
    reference = save_internlm2(tmp_path, "bias")
    rewrite_config(tmp_path, lambda raw: raw.pop("bias"))
    module = load_model(tmp_path, dtype="float32", device="cpu").module
    with torch.inference_mode():
        rewards = module(pack([Sequence(text) for text in texts()]))[:, 0]
    assert rewards.tolist() == pytest.approx([reference(text) for text in texts()], abs=TOLERANCE)


def test_a_gate_that_does_not_fit_the_scores_is_refused(tmp_path: Path) -> None:
    trunk = randomize(LlamaModel(LlamaConfig(**BASE)), 3)
    head = {"score.weight": torch.ones(10, HIDDEN)}
    for i, (n_in, n_out) in {0: (HIDDEN, 8), 2: (8, 8), 4: (8, 4)}.items():
        head |= {f"weights.fc.{i}.weight": torch.ones(n_out, n_in), f"weights.fc.{i}.bias": torch.ones(n_out)}
    save_with_head(tmp_path, URM, trunk, head)
    with pytest.raises(CheckpointError, match="two rows") as caught:
        load_model(tmp_path, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("qwen2", "InternLM2ForRewardModel"), ("qwen3", URM), ("internlm2 plain", "Qwen2ForRewardModel")],
)
def test_a_head_of_another_architecture_is_refused(name: str, architecture: str, tmp_path: Path) -> None:
    CASES[name](tmp_path)
    rewrite_config(tmp_path, lambda raw: raw.update(architectures=[architecture]))
    with pytest.raises(CheckpointError, match="has no tensor") as caught:
        load_model(tmp_path, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)
