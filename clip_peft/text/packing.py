"""Prompts of a causal tower without what changes nothing: one copy of the shared beginning, no token behind the pooled one.

What is left of each class stands in rows of W tokens, several classes a row; a mask keeps them apart.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clip_peft.text.prompts import Prompts
from peft_core.errors import PeftError

_WIDTHS = (16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True, eq=False)
class Packing:
    """N = shared + rows · width tokens, the shared ones first.

    ids, positions: N. pooled: C, indices into N. mask: rows 1 W shared+W, True where a token may look.
    slot_at, slot_class, slot: for each place of a context vector, its index in N, its class, and which vector.
    """

    shared: int
    rows: int
    width: int
    ids: Tensor
    positions: Tensor
    pooled: Tensor
    mask: Tensor
    slot_at: Tensor
    slot_class: Tensor
    slot: Tensor

    def grown(self, count: int) -> "Packing":
        """The same with `count` more shared tokens behind the first one, which have no positions.

        Raises:
            PeftError: nothing is shared, so that there is no first token for all.
        """
        if not self.shared:
            raise PeftError("no tokens can join these texts on their way: nothing begins alike in all of them.")
        mask = torch.cat((self.mask.new_ones(*self.mask.shape[:-1], count), self.mask), dim=-1)
        moved = self.pooled + count, self.slot_at + count
        return replace(self, shared=self.shared + count, mask=mask, pooled=moved[0], slot_at=moved[1])


def pack(prompts: Prompts, classes: slice, unified: bool, device: torch.device, *, padded: bool = False,
         share: bool = True) -> Packing:  # fmt: skip
    """Pack some classes of `prompts`; `unified` says that they share their context vectors.

    `padded` gives every class the length of the longest, one class a row (what padding costs, for comparison); without
    `share` each class keeps its own copy of the tokens that all begin with.
    """
    ids, slots, pooled = prompts.ids[classes], prompts.slots[classes], prompts.pooled[classes]
    shared = shared_tokens(ids, slots, pooled, unified) if share else 0
    lengths = (pooled - shared + 1).tolist()
    if padded:
        lengths = [max(lengths)] * len(lengths)
        width, bins = lengths[0], [[i] for i in range(len(lengths))]
    else:
        width, bins = choose_bins(lengths)
    owner = torch.full((len(bins), width), -1)
    column = torch.full((len(bins), width), shared)
    first = torch.zeros(len(lengths), dtype=torch.long)
    for r, row in enumerate(bins):
        at = 0
        for i in row:
            owner[r, at : at + lengths[i]] = i
            column[r, at : at + lengths[i]] = torch.arange(shared, shared + lengths[i])
            first[i] = shared + r * width + at
            at += lengths[i]
    column.clamp_(max=ids.shape[1] - 1)
    flat_owner = torch.cat((torch.zeros(shared, dtype=torch.long), owner.flatten()))
    flat_column = torch.cat((torch.arange(shared), column.flatten()))
    flat_slot = slots[flat_owner.clamp(min=0), flat_column].masked_fill(flat_owner < 0, -1)
    at = (flat_slot >= 0).nonzero().flatten()
    same = owner[:, :, None] == owner[:, None, :]
    mask = torch.cat((torch.ones(len(bins), width, shared, dtype=torch.bool), same.tril()), dim=2)
    tensors = dict(
        ids=ids[flat_owner.clamp(min=0), flat_column], positions=flat_column, pooled=first + pooled - shared,
        mask=mask[:, None], slot_at=at, slot_class=flat_owner[at], slot=flat_slot[at],
    )  # fmt: skip
    return Packing(shared, len(bins), width, **{key: value.to(device) for key, value in tensors.items()})


def shared_tokens(ids: Tensor, slots: Tensor, pooled: Tensor, unified: bool) -> int:
    """How many leading tokens are the same for all classes; the pooled token is never among them."""
    differs = (ids != ids[:1]).any(0) | (slots != slots[:1]).any(0)
    if not unified:
        differs = differs | (slots >= 0).any(0)
    first = int(differs.int().argmax()) if bool(differs.any()) else ids.shape[1]
    return min(first, int(pooled.min()))


def choose_bins(lengths: list[int]) -> tuple[int, list[list[int]]]:
    """The row width, and which classes go in which row, that leave the fewest tokens (wide rows cost attention)."""
    longest = max(lengths)
    widths = sorted({w for w in _WIDTHS if w >= longest} | {longest})
    packed = {w: bins_of(lengths, w) for w in widths}
    # a key costs a token about 1/3000 of the rest of a block at width 512
    best = min(widths, key=lambda w: len(packed[w]) * w * (1 + w / 3000))
    return best, packed[best]


def bins_of(lengths: list[int], width: int) -> list[list[int]]:
    """First-fit decreasing, by length: each row takes the longest class that still fits until none does."""
    waiting: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        waiting.setdefault(length, []).append(i)
    rows = []
    while waiting:
        row, room = [], width
        for length in sorted(waiting, reverse=True):
            while length <= room and waiting.get(length):
                row.append(waiting[length].pop())
                room -= length
            if not waiting[length]:
                del waiting[length]
        rows.append(row)
    return rows
