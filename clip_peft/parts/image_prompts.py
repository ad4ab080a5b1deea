"""Learnt tokens behind the patches of an image tower, new ones block by block: what MaPLe and PromptSRC put there."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from clip_peft.inside import Change, changed, open_to_change
from peft_core.anatomies import describe
from peft_core.errors import PeftError


class ImageTower:
    """The blocks of a CLIP model's image tower, open_clip's own or timm's, and their width D.

    Raises:
        PeftError: a tower that is no transformer, or whose blocks take no further tokens.
    """

    def __init__(self, visual: nn.Module, who: str):
        anatomy = describe(visual)
        stream = None if anatomy is None else anatomy.streams.get(None)
        if anatomy is None or stream is None or not stream.takes_tokens or stream.rotary:
            raise PeftError(
                f"{who} needs an image tower whose transformer blocks take further tokens, which {type(visual).__name__} "
                "does not offer: choose a ViT."
            )
        (paths,) = anatomy.blocks.values()
        self.blocks = [visual.get_submodule(path) for path in paths]
        self.width = stream.width
        self.entry = _entry(visual, self.blocks[0])
        open_to_change([self.entry, *self.blocks])

    def prompted(self, prompts: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Within the block images are encoded with prompts[0] (M D) behind their tokens, before the norm that stands in front
        of the blocks (`ln_pre`), and, before block i, with prompts[i] in place of what became of them; behind the last block
        they are taken out."""
        count = prompts[0].shape[0]

        def put(x: Tensor, prompt: Tensor, kept: int | None) -> Tensor:
            return torch.cat((x[:, :kept], prompt.to(x.dtype).expand(x.shape[0], -1, -1)), dim=1)

        receives: dict[nn.Module, Change] = {self.entry: lambda x: put(x, prompts[0], None)}
        for block, prompt in zip(self.blocks[1:], prompts[1:], strict=False):
            receives[block] = lambda x, prompt=prompt: put(x, prompt, -count)
        return changed(receives, {self.blocks[-1]: lambda y: y[:, :-count]})


def check_format(who: str, tower: ImageTower, format: int) -> None:
    """Raises PeftError for image prompts of the first format on a tower with a norm in front of its blocks, which they
    skipped."""
    if format < 2 and tower.entry is not tower.blocks[0] and not isinstance(tower.entry, nn.Identity):
        raise PeftError(
            f"this {who} adapter's image prompts stood behind {type(tower.entry).__name__}: train it again."
        )


def _entry(visual: nn.Module, first: nn.Module) -> nn.Module:
    """The module through which all tokens come to the blocks: the norm in front of them, else the first block."""
    tower = getattr(visual, "trunk", visual)
    norm = getattr(tower, "ln_pre", getattr(tower, "norm_pre", None))
    return first if norm is None else norm


def check_depth(who: str, depth: int, text: int, image: int) -> None:
    """Raises PeftError where `depth` is no number of blocks that both towers (of `text` and `image` blocks) have."""
    if not text:
        raise PeftError(
            f"{who} needs open_clip's own text blocks, not a transformers encoder: use coop, kgcoop or cocoop."
        )
    if not 1 <= depth <= min(text, image):
        raise PeftError(f"{who} got depth {depth}: it must lie between 1 and {min(text, image)}, the towers' blocks.")
