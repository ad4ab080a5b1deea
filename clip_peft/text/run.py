"""Class features from class names and context vectors: the one place that runs a CLIP model's text tower.

In a causal tower a token never sees what comes behind it. So (1) nothing behind the pooled token is run, (2) the tokens
before the class names, which all classes share, are run once and lend their keys and values to all classes, (3) what is
left of the classes is packed row by row without padding. Features and gradients are those of the full-length pass. Where
dropout is active each class runs all of its tokens, since each draws its own; drop path, which draws once a sequence, makes
the pass full-length.
Towers that look both ways, and CoCa's class token behind the text, get the model's own forward at full length.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_peft.inside import Change, changed, open_to_change
from clip_peft.text.packing import Packing, pack
from clip_peft.text.prompts import Prompts
from clip_peft.text.tower import TextTower
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta, grafts, leaving
from peft_core.grafts.weight_changes import linear

KEPT = 16
"""Numbers that a block keeps for backward per token and channel, about (15 measured on ViT-B-16's tower)."""


class TextPass:
    """`text_pass(context, deep) -> features`, unnormalised as `model.encode_text` gives them.

    Args:
        model: an open_clip model, adapted or not; what trains in it gets its gradients.
        prompts: the class prompts (`make_prompts`).
        memory: bytes that the activations of one chunk of classes may take; beyond it classes (or images) are run in
            chunks, features first, then chunk by chunk again in backward: exact, one more forward.
            By default 4 GiB, or half of what is free on the GPU.
    """

    def __init__(self, model: nn.Module, prompts: Prompts, memory: float | None = None):
        self.tower = TextTower(model)
        self.prompts = prompts
        self.memory = memory
        self._packings: dict[tuple, Packing] = {}
        if prompts.context:
            open_to_change([self.tower.embedding, *self.tower.blocks])

    def __call__(
        self, context: Tensor | None = None, deep: Sequence[Tensor | None] = (), *, full_length: bool = False,
        inserted: Mapping[int, Tensor] | None = None, mix: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """Features C E; with per-image context B C E.

        Args:
            context: M D for all classes, C M D class-specific, or B 1 M D (B C M D) per image.
            deep: the same shapes, one for each block from the second on, that replace the context's states there; None leaves
                them as they are.
            full_length: run the model's own forward with all tokens.
            inserted: block -> R D, tokens without positions that join the sequence behind its first token before that block, all
                classes' the same, and take the place of those of an earlier block. A causal tower's alone.
            mix: with what share they take it; the rest is what became of the earlier ones.

        Raises:
            PeftError: vectors that do not fit, or a tower that takes no further tokens.
        """
        vectors = [self._shaped(t) for t in (() if context is None else (context,)) + tuple(deep)]
        self._check(vectors, deep)
        images = _images(vectors)
        full_length = full_length or self.tower.full_length_because() is not None
        if inserted and full_length:
            raise PeftError(f"no tokens can join these texts on their way, because {self.tower.full_length_because()}.")
        run = self._full if full_length else partial(self._packed, inserted=inserted or {}, mix=mix)
        chunks = list(self._chunks(images, full_length, vectors))
        again = len(chunks) > 1 and torch.is_grad_enabled()
        parts = []
        for group, classes in chunks:
            own = [_part(v, group, classes) for v in vectors]
            parts.append(checkpoint(run, classes, *own, use_reentrant=False) if again else run(classes, *own))
        whole = _joined(parts, chunks)
        return whole if any(v.dim() == 4 for v in (context, *deep) if v is not None) else whole[0]

    # ---- chunks ----------------------------------------------------------------------------------------------------

    def _chunks(self, images: int, full_length: bool, vectors: list[Tensor | None]) -> Iterator[tuple[slice, slice]]:
        """(images, classes) of each chunk, classes innermost."""
        count = len(self.prompts)
        tokens = self.prompts.ids.shape[1] * count
        if not full_length:
            packing = self._packing(slice(0, count), _unified(vectors))
            tokens = packing.shared + packing.rows * packing.width
        at_once = max(1, int(self._budget() / self._bytes_per_token()))
        groups = max(1, min(images, at_once // tokens))
        classes = count if tokens <= at_once else max(1, count * at_once // tokens)
        for image in range(0, images, groups):
            for first in range(0, count, classes):
                yield slice(image, min(image + groups, images)), slice(first, min(first + classes, count))

    def _budget(self) -> float:
        if self.memory is not None:
            return self.memory
        if self.tower.device.type == "cuda":
            return 0.5 * torch.cuda.mem_get_info(self.tower.device)[0]
        return 4 * 2**30

    def _bytes_per_token(self) -> int:
        layers = max(1, len(self.tower.blocks) or 12) if torch.is_grad_enabled() else 1
        return KEPT * self.tower.width * layers * 4

    # ---- the two passes --------------------------------------------------------------------------------------------

    def _packed(self, classes: slice, *vectors: Tensor | None, inserted: Mapping[int, Tensor], mix: float) -> Tensor:
        """B C E from the tokens that matter."""
        packing = self._packing(classes, _unified(vectors))
        x = self.tower.embed(packing.ids).expand(_images(vectors), -1, -1)
        if self.prompts.context and vectors and vectors[0] is not None:
            x = _put(x, packing, vectors[0])
        x = x + self.tower.positions(packing.positions)
        mask, there = packing.mask.repeat(x.shape[0], 1, 1, 1), 0
        for i, block in enumerate(self.tower.blocks):
            if (tokens := inserted.get(i)) is not None:
                if not there:
                    packing = packing.grown(len(tokens))
                    mask = packing.mask.repeat(x.shape[0], 1, 1, 1)
                joined = tokens.to(x.dtype).expand(x.shape[0], -1, -1)
                joined = mix * joined + (1 - mix) * x[:, 1 : 1 + there] if there and mix != 1 else joined
                x, there = torch.cat((x[:, :1], joined, x[:, 1 + there :]), dim=1), len(tokens)
            if 0 < i < len(vectors) and (vector := vectors[i]) is not None:
                x = _put(x, packing, vector)
            x = run_block(block, x, packing, mask)
        return self.tower.project(x[:, packing.pooled])

    def _full(self, classes: slice, *vectors: Tensor | None) -> Tensor:
        """B C E by the model's own forward at full length, context vectors put in by hooks."""
        ids, slots = self.prompts.ids[classes], self.prompts.slots[classes]
        count, images = ids.shape[0], _images(vectors)
        row, column = (slots >= 0).nonzero(as_tuple=True)  # before they go to the device, which would have to wait
        ids, slot, row, column = (t.to(self.tower.device) for t in (ids, slots[row, column], row, column))

        def put(x: Tensor, vector: Tensor) -> Tensor:
            x = x.unflatten(0, (images, count))
            values = vector[:, row * (vector.shape[1] > 1), slot].to(x.dtype)
            flat = x.flatten(1, 2).index_copy(1, row * ids.shape[1] + column, values.expand(images, -1, -1))
            return flat.view(images * count, ids.shape[1], -1)

        batch_first = getattr(getattr(self.tower.root, "transformer", None), "batch_first", True)

        def put_deep(vector: Tensor, x: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            text, behind = x[:, : ids.shape[1]], x[:, ids.shape[1] :]  # CoCa's class token stands behind
            x = torch.cat((put(text, vector), behind), dim=1)
            return x if batch_first else x.transpose(0, 1)

        first = vectors[0] if vectors else None
        gives: dict[nn.Module, Change] = {} if first is None else {self.tower.embedding: lambda x: put(x, first)}
        later = zip(self.tower.blocks[1:], vectors[1:], strict=False)
        receives: dict[nn.Module, Change] = {
            block: lambda x, v=v: put_deep(v, x) for block, v in later if v is not None
        }
        with changed(receives, gives):
            features = self.tower.model.encode_text(ids.repeat(images, 1), normalize=False)  # type: ignore[operator]
        return features.unflatten(0, (images, count))

    def _packing(self, classes: slice, unified: bool) -> Packing:
        device = self.tower.device
        share = not self.tower.draws_tokens()
        key = (classes.start, classes.stop, unified, share, device)
        if key not in self._packings:
            self._packings[key] = pack(self.prompts, classes, unified, device, share=share)
        return self._packings[key]

    # ---- shapes ----------------------------------------------------------------------------------------------------

    def _shaped(self, vector: Tensor | None) -> Tensor | None:
        return None if vector is None else vector[(None,) * (4 - vector.dim())]

    def _check(self, vectors: list[Tensor | None], deep: Sequence[Tensor | None]) -> None:
        count, width = len(self.prompts), self.tower.width
        for v in (v for v in vectors if v is not None):
            if v.shape[1] not in (1, count) or tuple(v.shape[2:]) != (self.prompts.context, width):
                raise PeftError(
                    f"context of shape {tuple(v.shape)} does not fit {count} classes with {self.prompts.context} context "
                    f"tokens of width {width}: pass M D, C M D or B C M D."
                )
        if self.prompts.context and len(vectors) == len(deep):
            raise PeftError(f"these prompts have {self.prompts.context} context tokens: pass their vectors.")
        if deep and self.tower.is_hf:
            raise PeftError(
                "deep prompts need open_clip's own text blocks, not a transformers encoder: use another model."
            )
        if deep and len(deep) >= max(1, len(self.tower.blocks)):
            raise PeftError(
                f"{len(deep)} deep prompts need {len(deep) + 1} text blocks, but there are {len(self.tower.blocks)}."
            )


def _images(vectors: Sequence[Tensor | None]) -> int:
    return max((v.shape[0] for v in vectors if v is not None), default=1)


def _unified(vectors: Sequence[Tensor | None]) -> bool:
    """Whether all classes have the same vectors."""
    return all(v.shape[1] == 1 for v in vectors if v is not None)


def _part(vector: Tensor | None, images: slice, classes: slice) -> Tensor | None:
    if vector is None:
        return None
    vector = vector if vector.shape[0] == 1 else vector[images]
    return vector if vector.shape[1] == 1 else vector[:, classes]


def _joined(parts: list[Tensor], chunks: list[tuple[slice, slice]]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    rows: dict[int, list[Tensor]] = {}
    for part, (images, _) in zip(parts, chunks, strict=True):
        rows.setdefault(images.start, []).append(part)
    return torch.cat([torch.cat(row, dim=1) for row in rows.values()])


def _put(x: Tensor, packing: Packing, vector: Tensor) -> Tensor:
    """x B N D with the context vectors (B|1) (C|1) M D in their places."""
    values = vector[:, packing.slot_class * (vector.shape[1] > 1), packing.slot].to(x.dtype)
    return x.index_copy(1, packing.slot_at, values.expand(x.shape[0], -1, -1))


def run_block(block: Any, x: Tensor, packing: Packing, mask: Tensor) -> Tensor:
    """One stock block on packed tokens B N D: everything but attention works token by token, so its modules are called."""
    attention = leaving(block.attn, (), {}, _attend(block.attn, block.ln_1(x), packing, mask))
    x = x + block.ls_1(attention)
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return leaving(block, (), {}, x)


def _attend(attention: Any, x: Tensor, packing: Packing, mask: Tensor) -> Tensor:
    """Shared tokens look at themselves, causally; each row's tokens at the shared ones and at their own class before them."""
    images, shared, heads = x.shape[0], packing.shared, attention.num_heads
    parameters = attention._parameters
    joined = linear(x, parameters["in_proj_weight"], parameters["in_proj_bias"], list(grafts(attention, Delta)))
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in joined.chunk(3, -1))  # B N H d
    rows = (images * packing.rows, packing.width, heads, -1)
    # copies of their own, so that `joined` need not be kept for backward
    q_own = q[:, shared:].reshape(rows).transpose(1, 2).contiguous()
    k_own, v_own = (_with_shared(t, packing) for t in (k, v))
    out = F.scaled_dot_product_attention(q_own, k_own, v_own, attn_mask=mask)
    out = out.transpose(1, 2).reshape(images, -1, x.shape[-1])
    if shared:
        q, k, v = (t[:, :shared].transpose(1, 2).contiguous() for t in (q, k, v))
        first = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = torch.cat((first.transpose(1, 2).flatten(2), out), dim=1)
    return attention.out_proj(out)


def _with_shared(t: Tensor, packing: Packing) -> Tensor:
    """B N H d -> B·rows H shared+W d: each row's own keys (or values) behind the shared ones."""
    front = t[:, None, : packing.shared].expand(-1, packing.rows, -1, -1, -1)
    own = t[:, packing.shared :].unflatten(1, (packing.rows, packing.width))
    return torch.cat((front, own), dim=2).flatten(0, 1).transpose(1, 2)
