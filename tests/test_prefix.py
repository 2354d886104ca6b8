"""Shared prefixes: found, laid out once, and the scores are those of transformers; each way to get it wrong is seen."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.engine.runner import ModelRunner, form
from assay.model import attention as attention_module
from assay.model import company, prefix
from assay.model import layer as layer_module
from assay.model.attention import attention
from assay.model.batch import PackedBatch, Rows, Run, pack, pick
from assay.model.company import Filled, Shared
from assay.model.kernels import has_int8
from assay.model.prefix import SHORTEST, Group, find_groups, share
from assay.model.registry import LoadedModel, load_model
from assay.sequence import Prediction, Sequence
from tests.families import NATIVE
from tests.test_decoder import BITES, CASES, TOLERANCE, oracle, worst
from tests.tiny_decoders import FAMILIES, VOCAB, Saved, saved_once

pytestmark = pytest.mark.usefixtures("vectors")

BY_LENGTH = ("llama dynamic", "qwen3 dynamic", "gemma2 dynamic", "llama longrope", "phi3 longrope")
SHARING = [
    *FAMILIES, "llama 1 kv head", "mistral window 1", "phi3 window", "qwen2 layer_types", "gemma2 hard softcap",
    "gemma2 no softcap", "gemma3 pattern 2", "gemma3 linear and local", "llama llama3", "mistral yarn mscale",
    "phi3 partial",
]  # fmt: skip


def drawn(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(length)]


def company_of_prompts(seed: int = 0) -> list[Sequence]:
    """Two prompts with answers of equal and of other lengths, one of them answered twice with the same token, one
    answer that is the other's beginning, and texts that share nothing; in no order.
    """
    rng = random.Random(seed)
    first, second = drawn(rng, 40), drawn(rng, 33)
    answers = [drawn(rng, length) for length in (5, 12, 5, 1)]
    texts = [first + answer for answer in (*answers, answers[1][:6])]
    texts += [second + drawn(rng, 9), second + drawn(rng, 9), [*second, 1], [*second, 1]]
    texts += [drawn(rng, length) for length in (1, 17, 45)]
    rng.shuffle(texts)
    return [Sequence(text) for text in texts]


def scored(model: LoadedModel, sequences: list[Sequence], shared: bool = True) -> Tensor:
    """Logits [seqs, labels] of one batch, packed in the order given."""
    assert isinstance(model.module, Shared)
    with torch.inference_mode():
        logits: Tensor = (model.module if shared else model.module.module)(pack(sequences))
    return logits


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(folder, dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_once(CASES, tmp_path_factory.mktemp)


@pytest.mark.parametrize("name", SHARING)
def test_scores_are_those_of_transformers(name: str, saved: Saved) -> None:
    folder, model = saved(name)
    ours, sequences = load(folder), company_of_prompts()
    assert share(pack(sequences)) is not None
    logits = scored(ours, sequences)
    assert worst(logits, oracle(model, sequences)) <= TOLERANCE
    assert worst(logits, scored(ours, sequences, shared=False)) <= TOLERANCE


def seen_from_the_side(change: Callable[[PackedBatch], PackedBatch]) -> Callable[[PackedBatch], Any]:
    """share(), its batch changed."""

    def broken(batch: PackedBatch) -> Any:
        shared = share(batch)
        assert shared is not None
        return change(shared[0]), shared[1]

    return broken


def positions_from_zero(batch: PackedBatch) -> PackedBatch:
    starts = torch.tensor([0, *(prefix.length for prefix in batch.prefixes)]).cumsum(0).tolist() + [
        run.start + i * run.length for run in batch.runs for i in range(run.count)
    ]
    ends = sorted({*starts, batch.num_tokens})
    return replace(batch, position_ids=torch.cat([torch.arange(b - a) for a, b in pairwise(ends)]))


def other_prefix(batch: PackedBatch) -> PackedBatch:
    following = dict(zip(batch.prefixes, batch.prefixes[1:] + batch.prefixes[:1], strict=True))
    return replace(batch, runs=tuple(replace(r, prefix=r.prefix and following[r.prefix]) for r in batch.runs))


def prefix_without_its_last(batch: PackedBatch) -> PackedBatch:
    def less(run: Run | None) -> Run | None:
        return run and replace(run, length=run.length - 1)

    return replace(batch, runs=tuple(replace(run, prefix=less(run.prefix)) for run in batch.runs))


def no_prefix(batch: PackedBatch) -> PackedBatch:
    return replace(batch, runs=tuple(replace(run, prefix=None) for run in batch.runs))


BROKEN_LAYOUTS = {
    f.__name__: seen_from_the_side(f) for f in (positions_from_zero, other_prefix, prefix_without_its_last, no_prefix)
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", BROKEN_LAYOUTS)
def test_a_wrong_layout_is_seen(name: str, family: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, sequences = load(saved(family)[0]), company_of_prompts()
    right = scored(ours, sequences)
    monkeypatch.setattr(company, "share", BROKEN_LAYOUTS[name])
    assert worst(right, scored(ours, sequences)) > BITES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_one_too_long_is_seen(family: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """All would go on from the first answer's first token."""
    ours = load(saved(family)[0])
    sequences = [sequence for sequence in company_of_prompts() if sequence.num_tokens not in (34, 41)]
    right = scored(ours, sequences)
    monkeypatch.setattr(
        prefix, "find_groups", lambda texts: [replace(g, length=g.length + 1) for g in find_groups(texts)]
    )
    assert worst(right, scored(ours, sequences)) > BITES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_mask_is_seen(family: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands at the top left, as is_causal does, so that answers do not see all of their prompt; or, where no
    mask is made, a prompt of which they see but the beginning."""
    ours, sequences = load(saved(family)[0]), company_of_prompts()
    right, mask, spans = scored(ours, sequences), attention_module._mask, attention_module.spans

    def top_left(length: int, causal: bool, window: Any, device: Any, queries: int, always: bool = False) -> Any:
        whole = mask(length, causal, window, device, length, always=True)
        return mask(length, causal, window, device, queries, always) if queries == length else whole[:queries]

    def short(batch: PackedBatch, rows: Any) -> Any:
        return ((start, length, first, min(prefix, 3)) for start, length, first, prefix in spans(batch, rows))

    monkeypatch.setattr(attention_module, "spans", short)
    monkeypatch.setattr(layer_module, "spans", short)
    monkeypatch.setattr(attention_module, "_mask", top_left)
    assert worst(right, scored(ours, sequences)) > BITES


# Who shares


def test_a_batch_that_shares_nothing_is_handed_on_as_it_is() -> None:
    rng = random.Random(0)
    start = drawn(rng, SHORTEST - 1)
    batch = pack([Sequence([*start, i, *drawn(rng, 20)]) for i in range(6)] + [Sequence(start), Sequence(start)])
    given: list[PackedBatch] = []

    class Witness(torch.nn.Module):
        def forward(self, batch: PackedBatch) -> Tensor:
            given.append(batch)
            return torch.arange(batch.num_seqs)

    assert Shared(Witness())(batch).tolist() == list(range(8))
    assert given[0] is batch
    twice = pack([Sequence([*start, 1, 2]), Sequence([5]), Sequence([*start, 1, 3])])
    Shared(Witness())(twice)
    assert (given[1].num_tokens, given[1].num_seqs) == (twice.num_tokens - SHORTEST, 3)


@pytest.mark.parametrize("name", BY_LENGTH)
def test_a_rope_by_length_shares_nothing(name: str, saved: Saved) -> None:
    assert not isinstance(load(saved(name)[0]).module, Shared)


@pytest.mark.parametrize("name", NATIVE)
def test_only_decoders_share(name: str, vectors: int, tmp_path: Path) -> None:
    NATIVE[name].save(tmp_path)
    assert isinstance(load(tmp_path).module, Shared) == (name in FAMILIES)
    exact = bool(vectors) and name in FAMILIES
    assert _shares(load(tmp_path, deterministic=True).module) == exact
    assert not _shares(load_model(tmp_path, dtype="bfloat16", device="cpu").module)
    if has_int8(torch.device("cpu")):
        assert _shares(load(tmp_path, quantization="int8").module) == exact


def _shares(module: torch.nn.Module) -> bool:
    return any(isinstance(part, Shared) for part in module.modules())


@pytest.mark.parametrize("window", [None, (5, 0), (40, 0), (130, 0)], ids=str)
def test_the_same_bits_of_attention(window: tuple[int, int] | None, vectors: int) -> None:
    if not vectors:
        pytest.skip("torch's attention has other last bits")
    rng = random.Random(4)
    prompt = drawn(rng, 201)
    batch = pack([Sequence([*prompt, *drawn(rng, length)]) for length in (20, 150, 150)])
    shared = share(batch)
    assert shared is not None
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(2, VOCAB, 3, 4, 16, generator=generator)

    def seen(batch: PackedBatch) -> Tensor:
        q, k, v = (tables[0][batch.input_ids] + tables[1][batch.position_ids % VOCAB]).unbind(1)
        return attention(q, k, v, batch, scale=0.25, causal=True, window=window)

    whole, parts = seen(batch), seen(shared[0])
    ends = shared[0].cu_seqlens[1:] - 1
    assert torch.equal(parts[ends][shared[1]], whole[batch.cu_seqlens[1:] - 1])
    for i, run in enumerate(run for run in batch.apart().runs):
        start = int(shared[0].cu_seqlens[int(shared[1][i])])
        own = run.length - 201
        assert torch.equal(parts[start : start + own], whole[run.start + 201 : run.start + run.length])


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"deterministic": True}], ids=str)
@pytest.mark.parametrize("name", SHARING)
def test_the_same_bits_with_our_own_kernels(name: str, options: dict[str, Any], vectors: int, saved: Saved) -> None:
    """A prefix by itself, and what follows it, are what they are in one piece."""
    if not vectors:
        pytest.skip("torch's attention has other last bits")
    module = load(saved(name)[0], **options).module
    rng = random.Random(3)
    prompt = drawn(rng, 300)
    long = [Sequence([*prompt[:length], *drawn(rng, 20)]) for length in (300, 300, 261, 150)]
    for sequences in (company_of_prompts(), long):
        batch = pack(sequences)
        assert share(batch) is not None
        with torch.inference_mode():
            assert torch.equal(module(batch), torch.cat([module(one) for one in batch.each()]))


def test_products_have_numbers_of_rows_that_recur(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(saved("llama")[0]).module
    assert isinstance(module, Shared)
    rows: list[int] = []
    trunk = module.get_submodule("module.module.trunk" if isinstance(module.module, Filled) else "module.trunk")
    trunk.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].num_tokens))
    batch = pack(company_of_prompts())
    shared = share(batch)
    assert shared is not None
    with torch.inference_mode():
        module(batch)
    assert rows == [shared[0].filled().num_tokens if isinstance(module.module, Filled) else shared[0].num_tokens]
    assert rows[0] < batch.num_tokens / 2


def test_the_callers_count_every_token(saved: Saved) -> None:
    runner, batch = ModelRunner(load(saved("qwen3")[0])), form(company_of_prompts())
    lengths = [sequence.num_tokens for sequence in batch.sequences]
    assert batch.packed.num_tokens == sum(lengths)
    answers = runner.run(batch)
    assert [answer.num_tokens for answer in answers if isinstance(answer, Prediction)] == lengths


# Finding


@st.composite
def texts_that_begin_alike(draw: st.DrawFn) -> list[list[int]]:
    beginnings = draw(st.lists(st.integers(0, 3).map(lambda n: [n] * (SHORTEST + 4 * n)), min_size=1, max_size=4))
    ends = st.lists(st.integers(0, 2), min_size=1, max_size=6)
    return draw(st.lists(st.builds(list.__add__, st.sampled_from([[], *beginnings]), ends), min_size=1, max_size=12))


def spared(groups: list[Group]) -> int:
    return sum(group.spared for group in groups)


@given(texts_that_begin_alike())
@settings(max_examples=200, deadline=None)
def test_groups(texts: list[list[int]]) -> None:
    groups = find_groups(texts)
    members = [member for group in groups for member in group.members]
    assert len(set(members)) == len(members)
    for group in groups:
        assert len(group.members) >= 2
        assert SHORTEST <= group.length < min(len(texts[i]) for i in group.members)
        assert len({tuple(texts[i][: group.length]) for i in group.members}) == 1
    for i, j in combinations(range(len(texts)), 2):  # no two could have spared more by themselves
        alike = next((n for n, (a, b) in enumerate(zip(texts[i], texts[j], strict=False)) if a != b), 1 << 30)
        alike = min(alike, len(texts[i]) - 1, len(texts[j]) - 1)
        assert alike < SHORTEST or alike <= spared(groups)


@given(texts_that_begin_alike())
@settings(max_examples=200, deadline=None)
def test_a_layout_holds_every_text(texts: list[list[int]]) -> None:
    """Each is its prefix and what is behind it, at positions from 0; tokens that nobody reads there are none."""
    shared = share(pack([Sequence(text) for text in texts]))
    if shared is None:
        return
    batch, places = shared
    ids, positions, bounds = batch.input_ids.tolist(), batch.position_ids.tolist(), batch.cu_seqlens.tolist()
    owners = [(run, run.start + i * run.length) for run in batch.runs for i in range(run.count)]
    assert [start for _, start in owners] == bounds[:-1]
    assert bounds[-1] == batch.num_tokens == sum(map(len, texts)) - spared(find_groups(texts))
    assert bounds[0] == sum(run.length for run in batch.prefixes)
    for text, place in zip(texts, places.tolist(), strict=True):
        run, start = owners[place]
        before = run.prefix or Run(0, 1, 0)
        where = [*range(before.start, before.start + before.length), *range(start, start + run.length)]
        assert [ids[i] for i in where] == text
        assert [positions[i] for i in where] == list(range(len(text)))


def test_two_prompts_of_one_template_are_two_groups_where_that_spares_more() -> None:
    template = list(range(40))
    texts = [template + [50 + prompt] * 30 + [answer] for prompt in range(2) for answer in range(3)]
    assert find_groups(texts) == [Group(70, (0, 1, 2)), Group(70, (3, 4, 5))]
    others = [[*template, 60 + query, 1] for query in range(6)]
    assert find_groups(others) == [Group(40, (0, 1, 2, 3, 4, 5))]
    assert find_groups(texts[:3] + others[:2]) == [Group(70, (0, 1, 2)), Group(40, (3, 4))]
    assert find_groups(texts[:3] + others[:1]) == [Group(70, (0, 1, 2))]
    assert find_groups(texts[:2] + others) == [Group(40, tuple(range(8)))]  # 280 tokens spared, and not 70 + 200


# Attention, where models this small do not reach


@pytest.mark.parametrize(
    "options", [{}, {"window": (20, 0)}, {"window": (150, 0)}, {"window": (600, 0)}, {"softcap": 2.0}], ids=str
)
@pytest.mark.parametrize("rows", [None, "last"])
def test_long_answers(rows: Rows | None, options: dict[str, Any]) -> None:
    """Answers long enough for blocks of queries, with and without a window that bites."""
    rng = random.Random(0)
    prompt = drawn(rng, 200)
    batch = pack([Sequence(prompt + drawn(rng, length)) for length in (300, 300, 310)])
    shared = share(batch)
    assert shared is not None
    tokens = torch.randn(batch.num_tokens, 8, 16, generator=torch.Generator().manual_seed(0))
    for start in (500, 1000):
        tokens[start : start + 200] = tokens[:200]
    kept = torch.cat([torch.arange(500), torch.arange(700, 1000), torch.arange(1200, 1510)])

    def seen(tokens: Tensor, batch: PackedBatch) -> Tensor:
        q, k, v = tokens.split((4, 2, 2), dim=1)
        return attention(pick(q, batch, rows), k, v, batch, scale=0.25, causal=True, rows=rows, **options)

    whole = seen(tokens, batch)
    assert worst(whole if rows else whole[kept], seen(tokens[kept], shared[0])) < 1e-5
