"""Prefixes that sequences of a batch share, laid out once for all of them. Knows no model and no attention.

One prefix for each sequence: prefixes of prefixes are not shared a second time.
"""

from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from assay.model.batch import PackedBatch, Run, runs_of

SHORTEST = 32
"""Tokens of the shortest prefix that is shared."""

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences by their places, two or more, whose first `length` tokens are the same. Each has more behind them."""

    length: int
    members: tuple[int, ...]

    @property
    def spared(self) -> int:
        """Tokens that need not be computed."""
        return self.length * (len(self.members) - 1)


def share(batch: PackedBatch) -> tuple[PackedBatch, Tensor] | None:
    """The batch with each shared prefix once, ahead of all sequences, and where each sequence went, int64 [seqs].

    None where nothing is shared. Positions count on from the prefix, and the sequences of a group are neighbours.
    """
    bounds, ids = batch.cu_seqlens.tolist(), batch.input_ids.tolist()
    groups = find_groups([ids[start:end] for start, end in pairwise(bounds)])
    if not groups:
        return None
    firsts = [bounds[group.members[0]] for group in groups]
    tokens = [range(first, first + group.length) for first, group in zip(firsts, groups, strict=True)]
    starts = [0, *accumulate(map(len, tokens))]
    prefixes = [Run(start, 1, group.length) for start, group in zip(starts, groups, strict=False)]
    order: list[int] = []
    runs: list[Run] = []
    ends = starts[-1:]
    alone = set(range(batch.num_seqs)).difference(*(group.members for group in groups))
    parts = [*zip(prefixes, (group.members for group in groups), strict=True), (None, sorted(alone))]
    for prefix, members in parts:  # members in the batch's order, so that equal lengths stay neighbours
        own = [range(bounds[i] + (prefix.length if prefix else 0), bounds[i + 1]) for i in members]
        lengths = [len(each) for each in own]
        runs += runs_of(lengths, ends[-1], prefix)
        ends += [ends[-1] + length for length in accumulate(lengths)]
        tokens += own
        order += members
    index = torch.tensor(list(chain.from_iterable(tokens)))
    shared = PackedBatch(
        batch.input_ids[index],
        batch.position_ids[index],
        batch.token_type_ids[index],
        torch.tensor(ends),
        tuple(runs),
        tuple(prefixes),
    )
    return shared, torch.tensor(order).argsort()


def find_groups(sequences: Seq[Ids]) -> list[Group]:
    """Disjoint groups that spare many tokens. Where no two sequences begin alike, it costs a look at each beginning."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, ids in enumerate(sequences):
        if len(ids) > SHORTEST:
            alike[tuple(ids[:SHORTEST])].append(i)
    groups: list[Group] = []
    for members in alike.values():
        if len(members) > 1:
            members.sort(key=sequences.__getitem__)  # the longer a prefix, the nearer are those who share it
            groups += _grouped(members, [_common(sequences[a], sequences[b]) for a, b in pairwise(members)])
    return [Group(group.length, tuple(sorted(group.members))) for group in groups]


def _grouped(members: Ids, common: Ids) -> list[Group]:
    """Groups by longer prefixes where those spare more, and one of all the others by what all members share.

    common: what each but the last shares with the next. Both are in the order of the sequences' ids.
    """
    if not common:
        return []
    least = min(common)
    cuts = [-1, *(i for i, length in enumerate(common) if length == least), len(common)]
    longer = [group for a, b in pairwise(cuts) for group in _grouped(members[a + 1 : b + 1], common[a + 1 : b])]
    kept = [group for group in longer if group.spared > least * len(group.members)]
    others = tuple(set(members).difference(*(group.members for group in kept)))
    together, instead = Group(least, others), sum(group.spared for group in longer if group not in kept)
    return [*kept, together] if together.spared > instead else longer


def _common(a: Ids, b: Ids) -> int:
    """Tokens that both begin with, but for the last of either: that one is read by the head."""
    longest = min(len(a), len(b)) - 1
    return next((i for i in range(longest) if a[i] != b[i]), longest)
