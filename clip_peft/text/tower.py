"""What the text pass must know of a model's text tower, read from the model itself: its parts, its pooling, its mask."""

from typing import Any

import torch
from torch import Tensor, nn

from clip_peft.inside import give, receive
from peft_core.errors import PeftError
from peft_core.grafts.branch import Branch
from peft_core.grafts.graft import Delta, entering, grafts, leaving

_PLAIN_ATTENTION = ("logit_scale", "head_scale")
_PLAIN_NORMS = ("ln_q", "ln_k", "ln_inner", "ln_attn")


class TextTower:
    """The text tower of an open_clip model: `CLIP` keeps its parts on itself, `CustomTextCLIP` and `CoCa` in `.text`.

    Raises:
        PeftError: the model has no text tower of a known layout.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.root: Any = getattr(model, "text", model)
        if not hasattr(model, "encode_text") or not (hasattr(self.root, "token_embedding") or self.is_hf):
            raise PeftError(f"{type(model).__name__} has no text tower: pass a model of open_clip.create_model.")

    @property
    def is_hf(self) -> bool:
        """A transformers encoder inside open_clip's HFTextEncoder."""
        return hasattr(self.root, "pooler") and hasattr(getattr(self.root, "transformer", None), "get_input_embeddings")

    @property
    def embedding(self) -> nn.Module:
        return self.root.transformer.get_input_embeddings() if self.is_hf else self.root.token_embedding

    @property
    def width(self) -> int:
        return self.embedding.weight.shape[1]  # type: ignore[union-attr,return-value]

    @property
    def vocabulary(self) -> int:
        return self.embedding.weight.shape[0]  # type: ignore[union-attr,return-value]

    @property
    def context_length(self) -> int:
        return self.root.context_length

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device  # type: ignore[union-attr,return-value]

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks; empty for a transformers encoder."""
        return list(getattr(self.root.transformer, "resblocks", ()))

    @property
    def features(self) -> int:
        """Width E of the joint space."""
        projection = getattr(self.root, "text_projection", None)
        if isinstance(projection, nn.Linear):
            return projection.out_features
        if projection is not None:
            return projection.shape[1]
        return getattr(self.root, "output_dim", None) or self.width

    def pooled(self, ids: Tensor) -> Tensor:
        """C: the index of the token whose state becomes the feature, for token ids C L."""
        kind = getattr(self.root, "pool_type", getattr(self.root, "text_pool_type", "last"))
        if kind == "argmax":
            return ids.argmax(-1)
        if kind == "eos":
            eos = getattr(self.root, "eos_id", getattr(self.root, "text_eos_id", None))
            return (ids == eos).int().argmax(-1)
        return torch.full(ids.shape[:1], 0 if kind == "first" else ids.shape[1] - 1)

    # ---- may the pass leave tokens out? ----------------------------------------------------------------------------

    def full_length_because(self) -> str | None:
        """Why every token must be run, from the model's own configuration; None where later tokens change nothing."""
        if self.is_hf:
            return "a transformers text encoder reads all tokens"
        if getattr(self.root, "cls_emb", None) is not None:
            return "a class token stands behind the text and reads all of it"
        mask = getattr(self.root, "attn_mask", None)
        if mask is None or getattr(self.root, "use_pad_mask", False):
            return "its text tower is bidirectional"
        if not mask.is_meta and not torch.isinf(mask[0, 1:]).all():
            return "its attention mask is not causal"
        return next((f"its text block {type(block).__name__} does more than a stock one" for block in self.blocks
                     if not _stock_block(block)), None)  # fmt: skip

    def draws_tokens(self) -> bool:
        """Whether dropout is active, the model's or a graft's: then equal tokens of two classes are no longer equal."""
        return "token" in self._chances()

    def draws(self) -> bool:
        """Whether two passes over the same texts differ by chance."""
        return self._chances() != {None}

    def _chances(self) -> set[str | None]:
        return {_draws(module) for part in self.parts()[0] for module in part.modules()}

    # ---- parts -----------------------------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        return self.embedding(ids).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.root.transformer.get_cast_dtype()

    def positions(self, index: Tensor) -> Tensor:
        return self.root.positional_embedding[index].to(self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Final norm and projection of pooled tokens (… D) -> (… E)."""
        x = self.root.ln_final(x)
        projection = self.root.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def parts(self) -> tuple[list[nn.Module], list[Tensor]]:
        """The modules of the text tower, and its parameters and buffers that stand beside them: on `CLIP` the image tower is
        none of it."""
        if self.root is not self.model:
            return [self.root], []
        names = ("transformer", "token_embedding", "ln_final", "text_projection")
        modules = [part for name in names if isinstance(part := getattr(self.root, name, None), nn.Module)]
        names = ("positional_embedding", "text_projection", "attn_mask")
        return modules, [part for name in names if isinstance(part := getattr(self.root, name, None), Tensor)]

    def trainable(self) -> list[Tensor]:
        """The text tower's parameters that require grad."""
        modules, tensors = self.parts()
        return [p for p in (*(p for part in modules for p in part.parameters()), *tensors) if p.requires_grad]


def _draws(module: nn.Module) -> str | None:
    """What a module in training draws chance for, if it does: each "token" (dropout), or a whole "sequence" (drop path, dropout
    of channels or of attention weights)."""
    if not module.training:
        return None
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return None if not module.p else "token" if isinstance(module, nn.Dropout | nn.AlphaDropout) else "sequence"
    rates = {name for name in ("dropout", "drop_path", "drop_prob") if _is_rate(module.__dict__.get(name))}
    of_tokens = rates == {"dropout"} and not hasattr(module, "in_proj_weight")
    return None if not rates else "token" if of_tokens else "sequence"


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _stock_block(block: Any) -> bool:
    """x + ls_1(attn(ln_1(x))), then x + ls_2(mlp(ln_2(x))), with attention by in_proj_weight and out_proj alone."""
    attention = getattr(block, "attn", None)
    if attention is None or not all(hasattr(block, part) for part in ("ln_1", "ls_1", "ln_2", "mlp", "ls_2")):
        return False
    if hasattr(block, "ln_1_kv") or "in_proj_weight" not in attention._parameters or not hasattr(attention, "out_proj"):
        return False
    if any(getattr(attention, name, None) is not None for name in _PLAIN_ATTENTION):
        return False
    norms = [getattr(owner, name, None) for owner in (attention, block) for name in _PLAIN_NORMS]
    if any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms):
        return False
    if any(_draws(module) == "sequence" for module in block.modules()):  # and packed classes are none
        return False
    if (drop := getattr(attention, "attn_drop", None)) is not None and _draws(drop):
        return False
    # grafts that do not work token by token, and hooks of others, need the modules' own forward
    kinds = [graft for module in (attention, block) for graft in grafts(module)]
    hooks = [
        hook for module in (attention, block) for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]  # fmt: skip
    tapped = any("peft_taps" in module.__dict__ for module in (attention, block))
    return (
        not tapped
        and all(isinstance(graft, Delta | Branch) for graft in kinds)
        and all(hook in (entering, leaving, receive, give) for hook in hooks)
    )
