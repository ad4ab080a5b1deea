"""Names of a UNet's modules in Stability's own code ("sgm", "ldm"), which LoRA files for SDXL use, from diffusers' names."""

import re
from typing import Any

_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(
    r"(down_blocks\.(\d+)|mid_block|up_blocks\.(\d+))\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def sgm_name(path: str, layers_per_block: int, attends: bool) -> str:
    """The module's name in Stability's code.

    Input blocks are counted through all levels: conv_in, then per level its layers and its down-sampler. Within one, 0 is
    the resnet, 1 the transformer; an up-sampler comes after both, or second where its level has no transformer.

    Args:
        layers_per_block: the UNet's, of the way down; one more on the way up.
        attends: whether the block that holds the module has transformers.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = _BLOCK.fullmatch(path)
    if found is None:
        return path
    _, down, up, kind, number, rest = found.groups()
    layer = int(number)
    if kind == "resnets":
        rest = _RESNET.get(rest, rest)
    if down is not None:
        first = 1 + int(down) * (layers_per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.op"
        return f"input_blocks.{first + layer}.{int(kind == 'attentions')}.{rest}"
    if up is not None:
        first = int(up) * (layers_per_block + 1)
        if kind == "upsamplers":
            return f"output_blocks.{first + layers_per_block}.{1 + attends}.{rest}"
        return f"output_blocks.{first + layer}.{int(kind == 'attentions')}.{rest}"
    return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{rest}"


def stock_names(unet: Any) -> dict[str, str]:
    """Stability's name -> diffusers' path, of every module of a UNet that has both; {} for one without regular levels."""
    layers = getattr(getattr(unet, "config", None), "layers_per_block", None)
    if not isinstance(layers, int):
        return {}
    return {name: path for path, _ in unet.named_modules() if (name := sgm_path(path, unet)) != path}


def sgm_path(path: str, unet: Any) -> str:
    """`sgm_name` of a module of this UNet."""
    block = unet.get_submodule(".".join(path.split(".")[:2])) if path.startswith("up_blocks.") else None
    return sgm_name(path, unet.config.layers_per_block, hasattr(block, "attentions"))
