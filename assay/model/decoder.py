"""Decoders with a head on the last token: Llama, Mistral, Qwen2/3, Gemma 1 to 3, Phi-3, InternLM2, by a table of flags.

The flags and their reading are in decoder_config.py. Knows no text generation: there is no cache.
"""

import re

import torch
from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.model.attention import Window, attention
from assay.model.batch import PackedBatch, Rows, pick
from assay.model.blueprint import Blueprint, HeadSpec, Rename, Shapes, num_rows
from assay.model.decoder_config import FAMILIES, DecoderConfig, Raw, read_decoder
from assay.model.embedding import embedding
from assay.model.layer import Norms, Shape, TransformerLayer
from assay.model.linear import Linear
from assay.model.mlp import MLP
from assay.model.norm import RMSNorm, normed_sum, sum_and_norm
from assay.model.rotary import Rotary, rotate

# Architecture → (family, head). Heads: a score matrix; the logits of answers (rerankers saved as language models);
# InternLM2's; a score after a hidden layer; a gated sum (URM).
ARCHITECTURES = {
    "LlamaForSequenceClassification": ("llama", "score"),
    "MistralForSequenceClassification": ("mistral", "score"),
    "Qwen2ForSequenceClassification": ("qwen2", "score"),
    "Qwen3ForSequenceClassification": ("qwen3", "score"),
    "GemmaForSequenceClassification": ("gemma", "score"),
    "Gemma2ForSequenceClassification": ("gemma2", "score"),
    "Gemma3TextForSequenceClassification": ("gemma3_text", "score"),
    "Phi3ForSequenceClassification": ("phi3", "score"),
    "LlamaForCausalLM": ("llama", "answer"),
    "MistralForCausalLM": ("mistral", "answer"),
    "Qwen2ForCausalLM": ("qwen2", "answer"),
    "Qwen3ForCausalLM": ("qwen3", "answer"),
    "GemmaForCausalLM": ("gemma", "answer"),
    "Gemma2ForCausalLM": ("gemma2", "answer"),
    "Gemma3ForCausalLM": ("gemma3_text", "answer"),
    "Phi3ForCausalLM": ("phi3", "answer"),
    "InternLM2ForRewardModel": ("internlm2", "v_head"),
    "Qwen2ForRewardModel": ("qwen2", "score_mlp"),
    "Qwen3ForRewardModel": ("qwen3", "score_mlp"),
    "LlamaForSequenceClassificationWithNormal_Weights": ("llama", "gated"),
}


_QKV = ("q_proj", "k_proj", "v_proj")


def _llama_names(family: str) -> tuple[Rename, ...]:
    layer, ours = r"model\.layers\.(\d+)\.", r"trunk.layers.\1."
    # Gemma 2 and 3 call the norm before the MLP pre_feedforward, and the one after attention what Llama calls that.
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    if FAMILIES[family].four_norms:
        norms = {
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "attn_out_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_out_norm",
        }
    return (
        Rename(r"model\.embed_tokens\.weight", "trunk.embeddings.weight"),
        Rename(r"model\.norm\.weight", "trunk.norm.weight"),
        *(Rename(layer + theirs + r"\.weight", ours + name + ".weight") for theirs, name in norms.items()),
        Rename(layer + r"self_attn\.(?P<part>[qkv]_proj)\.(weight|bias)", ours + r"qkv.\3", parts=_QKV),
        Rename(layer + r"self_attn\.qkv_proj\.weight", ours + "qkv.weight"),  # Phi-3 fuses both itself
        Rename(layer + r"self_attn\.o_proj\.(weight|bias)", ours + r"attn_out.\2"),
        Rename(layer + r"self_attn\.([qk]_norm)\.weight", ours + r"\2.weight"),
        Rename(
            layer + r"mlp\.(?P<part>gate_proj|up_proj)\.(weight|bias)",
            ours + r"mlp.up.\3",
            parts=("gate_proj", "up_proj"),
        ),
        Rename(layer + r"mlp\.gate_up_proj\.weight", ours + "mlp.up.weight"),
        Rename(layer + r"mlp\.down_proj\.(weight|bias)", ours + r"mlp.down.\2"),
    )


def _internlm2_names(config: DecoderConfig) -> tuple[Rename, ...]:
    layer, ours = r"model\.layers\.(\d+)\.", r"trunk.layers.\1."
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def by_kind(wqkv: Tensor) -> Tensor:
        """Rows come per KV head as [its query heads, k, v]; ours come as all q, all k, all v."""
        groups = wqkv.view(kv_heads, heads // kv_heads + 2, head_dim, *wqkv.shape[1:])
        return torch.cat([groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)])

    return (
        Rename(r"model\.tok_embeddings\.weight", "trunk.embeddings.weight"),
        Rename(r"model\.norm\.weight", "trunk.norm.weight"),
        Rename(layer + r"attention_norm\.weight", ours + "attn_norm.weight"),
        Rename(layer + r"ffn_norm\.weight", ours + "mlp_norm.weight"),
        Rename(layer + r"attention\.wqkv\.(weight|bias)", ours + r"qkv.\2", transform=by_kind),
        Rename(layer + r"attention\.wo\.(weight|bias)", ours + r"attn_out.\2"),
        Rename(layer + r"feed_forward\.(?P<part>w1|w3)\.weight", ours + "mlp.up.weight", parts=("w1", "w3")),
        Rename(layer + r"feed_forward\.w2\.weight", ours + "mlp.down.weight"),
    )


_HEAD_NAMES = {
    "score": (Rename(r"score\.weight", "head.out.weight"),),
    "v_head": (Rename(r"v_head\.weight", "head.out.weight"),),
    "score_mlp": (
        Rename(r"score\.0\.(weight|bias)", r"head.dense.\1"),
        Rename(r"score\.2\.(weight|bias)", r"head.out.\1"),
    ),
    "gated": (
        Rename(r"score\.weight", "head.out.weight"),
        Rename(r"weights\.fc\.0\.(weight|bias)", r"head.gate.0.\1"),
        Rename(r"weights\.fc\.2\.(weight|bias)", r"head.gate.1.\1"),
        Rename(r"weights\.fc\.4\.(weight|bias)", r"head.gate.2.\1"),
    ),
}


def _answer_names(architecture: str, raw: Raw, shapes: Shapes) -> tuple[Rename, ...]:
    """The score as one row: the language model head's for `yes` less that for `no`. Tied heads are the embeddings."""
    ids = raw.get("answer_token_ids")
    if ids is None:
        raise CheckpointError(
            f"{architecture} is a language model. If it is a reranker that answers with a token, say with which: "
            "--classifier-from-token no,yes."
        )
    if raw.get("final_logit_softcapping") and len(ids) > 1:
        raise CheckpointError(
            "config.json caps the logits (final_logit_softcapping), so their difference is no product."
        )

    def row(matrix: Tensor) -> Tensor:
        wanted = matrix[[ids[-1]]].float()
        return wanted - matrix[[ids[0]]].float() if len(ids) > 1 else wanted

    source = "lm_head.weight" if "lm_head.weight" in shapes else "model.embed_tokens.weight"
    if max(ids) >= num_rows(shapes, source):
        raise CheckpointError(
            f"The answer tokens {ids} are not all within the {num_rows(shapes, source)} rows of {source}."
        )
    return (Rename(re.escape(source), "head.out.weight", transform=row),)


def _head(kind: str, hidden_size: int, shapes: Shapes) -> HeadSpec:
    match kind:
        case "answer":
            return HeadSpec("last", hidden_size, 1, out_bias=False)
        case "score" | "v_head":
            return HeadSpec("last", hidden_size, num_rows(shapes, f"{kind}.weight"), out_bias=False)
        case "score_mlp":
            return HeadSpec("last", hidden_size, num_rows(shapes, "score.2.weight"), dense=True, act="relu")
        case _:
            gate = tuple(num_rows(shapes, f"weights.fc.{i}.weight") for i in (0, 2, 4))
            if num_rows(shapes, "score.weight") != 2 * gate[-1]:
                raise CheckpointError(
                    "score.weight must have two rows (mean, uncertainty) for each row of weights.fc.4."
                )
            return HeadSpec("last", hidden_size, 1, gate=gate, out_bias=False)


def blueprint(architecture: str, raw: Raw, shapes: Shapes) -> Blueprint:
    """Read config.json and the names in the checkpoint; say what to build, and which tensor goes where."""
    family, kind = ARCHITECTURES[architecture]
    config = read_decoder(raw, family)
    names = _internlm2_names(config) if family == "internlm2" else _llama_names(family)
    head_names = _answer_names(architecture, raw, shapes) if kind == "answer" else _HEAD_NAMES[kind]
    return Blueprint(
        trunk=lambda: Decoder(config),
        head=_head(kind, config.hidden_size, shapes),
        renames=(*names, *head_names),
        vocab_size=config.vocab_size,
        type_vocab_size=0,
        max_positions=config.rope.usable_length,
        reward=kind not in ("score", "answer"),
        refused_dtypes=("float16",) if family in ("gemma2", "gemma3_text") else (),
        shares_prefixes=not any(rope is not None and rope.by_length for rope in (config.rope, config.local_rope)),
    )


class Decoder(nn.Module):
    """PackedBatch → hidden states [tokens, hidden], or [seqs, hidden] of those rows alone, after the last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embeddings = embedding(config.vocab_size, config.hidden_size)
        self.embedding_scale = config.hidden_size**0.5 if config.flags.gemma else None
        self.rotary = Rotary(config.rope)
        self.local_rotary = Rotary(config.local_rope) if config.local_rope else None
        self.layers = nn.ModuleList(DecoderLayer(config, window) for window in config.windows)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.flags.gemma)

    def forward(self, batch: PackedBatch, rows: Rows | None = None) -> Tensor:
        x: Tensor = self.embeddings(batch.input_ids)
        if self.embedding_scale is not None:
            x = x * torch.tensor(self.embedding_scale, dtype=x.dtype)  # rounded to the weights' precision, as trained
        turn = self.rotary(batch)
        local_turn = self.local_rotary(batch) if self.local_rotary is not None else turn
        more: Tensor | None = None
        for i, layer in enumerate(self.layers, 1):
            is_last = i == len(self.layers)
            x, more = layer(x, more, batch, turn if layer.window is None else local_turn, rows if is_last else None)
        assert more is not None
        return normed_sum(self.norm, x, more)


class DecoderLayer(TransformerLayer):
    """Two sums: attention and MLP, each normed before, and after too where the family does.

    Each is done with the norm that follows it: a layer begins with what the last one has left to add, and leaves more.
    """

    def __init__(self, config: DecoderConfig, window: Window | None) -> None:
        super().__init__()
        hidden, heads, kv_heads, head_dim = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.sizes = (heads, kv_heads, kv_heads)
        self.shape = Shape(
            heads, kv_heads, head_dim, config.scale, after=False, causal=True, window=window, softcap=config.softcap
        )
        self.qkv = Linear(hidden, sum(self.sizes) * head_dim, config.qkv_bias)
        self.attn_out = Linear(heads * head_dim, hidden, config.o_bias)
        self.mlp = MLP(hidden, config.intermediate_size, config.act, config.mlp_bias, gated=True)

        def norm(size: int) -> RMSNorm:
            return RMSNorm(size, config.rms_norm_eps, config.flags.gemma)

        self.attn_norm, self.mlp_norm = norm(hidden), norm(hidden)
        self.q_norm, self.k_norm = (norm(head_dim) if config.flags.qk_norm else None for _ in range(2))
        self.attn_out_norm, self.mlp_out_norm = (
            norm(hidden) if config.flags.four_norms else nn.Identity() for _ in range(2)
        )

    def norms(self) -> Norms:
        return Norms(self.attn_norm, self.mlp_norm, self.q_norm, self.k_norm, self.attn_out_norm, self.mlp_out_norm)

    def forward(
        self,
        x: Tensor,
        more: Tensor | None,
        batch: PackedBatch,
        turn: tuple[Tensor, Tensor],
        rows: Rows | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.joined is not None:
            return self.joined(x, batch, rows, more, turn)
        x, normed = sum_and_norm(self.attn_norm, x, more)
        seen = self.attn_out_norm(self.attend(normed, batch, turn, rows))
        x, normed = sum_and_norm(self.mlp_norm, pick(x, batch, rows), seen)
        return x, self.mlp_out_norm(self.mlp(normed))

    def attend(self, x: Tensor, batch: PackedBatch, turn: tuple[Tensor, Tensor], rows: Rows | None) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], -1, self.shape.head_dim).split(self.sizes, dim=1)
        q, k = pick(rotate(q, *turn, self.q_norm), batch, rows), rotate(k, *turn, self.k_norm)
        scale, softcap = self.shape.scale, self.shape.softcap
        seen = attention(q, k, v, batch, scale=scale, causal=True, window=self.window, softcap=softcap, rows=rows)
        out: Tensor = self.attn_out(seen.flatten(1))
        return out
