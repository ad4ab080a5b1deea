"""Learnt tokens behind the patches of an image tower, new ones block by block: what MaPLe and PromptSRC put there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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

    @contextmanager
    def prompted(self, prompts: Sequence[Tensor]) -> Iterator[None]:
        """Within the block images are encoded with prompts[0] (M D) behind their tokens, and, before block i, with
        prompts[i] in place of what became of them; behind the last block they are taken out."""
        count = prompts[0].shape[0]

        def put(i: int, x: Tensor) -> Tensor:
            kept = x if i == 0 else x[:, :-count]
            return torch.cat((kept, prompts[i].to(x.dtype).expand(x.shape[0], -1, -1)), dim=1)

        handles = [
            block.register_forward_pre_hook(lambda _, args, i=i: (put(i, args[0]), *args[1:]), prepend=True)
            for i, block in enumerate(self.blocks[: len(prompts)])
        ]
        handles.append(self.blocks[-1].register_forward_hook(lambda _, __, y: y[:, :-count]))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def checked_depth(who: str, depth: int, text: int, image: int) -> int:
    """Raises PeftError where `depth` is no number of blocks that both towers (of `text` and `image` blocks) have."""
    if not text:
        raise PeftError(
            f"{who} needs open_clip's own text blocks, not a transformers encoder: use coop, kgcoop or cocoop."
        )
    if not 1 <= depth <= min(text, image):
        raise PeftError(f"{who} got depth {depth}: it must lie between 1 and {min(text, image)}, the towers' blocks.")
    return depth
