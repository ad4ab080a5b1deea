"""ConvNeXt and its second version of timm and transformers, DINOv3's among them: one residual step a block, x ← x + drop(γ ⊙
MLP(norm(DW x))). Blocks are counted through all stages; each stage has a stream of its own, B D H W, and a step's MLP reads
B H W D.

Models whose MLP is of convolutions over single pixels (timm's smallest) are known by their layers.
"""

import re
from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Stream, SubLayer, by_leaves, class_names, join, submodule

_BLOCKS = {"ConvNeXtBlock", "ConvNextLayer", "ConvNextV2Layer", "DINOv3ConvNextLayer"}
_MODELS = ("timm.models.convnext.", "transformers.models.convnext", "transformers.models.dinov3_convnext")
_PARTS = {
    "enters": ("conv_dw", "dwconv", "depthwise_conv"), "norm": ("norm", "layernorm", "layer_norm"),
    "into": ("mlp.fc1", "pwconv1", "pointwise_conv1"), "out": ("mlp.fc2", "pwconv2", "pointwise_conv2"),
    "body": ("mlp", "pwconv1", "pointwise_conv1"),
}  # fmt: skip
_REFUSED = "its convolutions need every pixel's place"


def describe(model: Any) -> Anatomy | None:
    if not any(name.startswith(_MODELS) for name in class_names(model)):
        return None
    blocks = [(path, block) for path, block in model.named_modules() if type(block).__name__ in _BLOCKS]
    linear = all(isinstance(_part(block, "into")[1], nn.Linear) for _, block in blocks)
    anatomy = by_leaves.describe(model) if blocks and linear else None
    if anatomy is None:
        return None
    places = {path: index for index, (path, _) in enumerate(blocks)}
    anatomy.blocks = {None: list(places)}
    anatomy.places = [by_leaves.placed(place, places) for place in anatomy.places]
    anatomy.single = True
    height, width = _size(model)
    for path, block in blocks:
        entry: Any = _part(block, "enters")[1]
        stage = int(re.findall(r"stages\.(\d+)\.", path)[-1])
        name, stride = f"stage{stage + 1}", 4 << stage
        grid = (height // stride, width // stride)
        anatomy.streams[name] = Stream(entry.out_channels, 0, grid, _REFUSED, channels_first=True)
        at = {part: join(path, _part(block, part)[0]) for part in _PARTS}
        anatomy.sublayers.append(
            SubLayer("mlp", places[path], at["norm"], at["body"], (at["into"],), at["out"], join(path, "drop_path"),
                     stream=name, enters=at["enters"])
        )  # fmt: skip
    return anatomy


def _size(model: Any) -> tuple[int, int]:
    """Height and width of the pictures that it was trained on."""
    known = getattr(model, "pretrained_cfg", None)
    size = known["input_size"][1:] if known else getattr(model.config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _part(block: nn.Module, part: str) -> tuple[str, nn.Module | None]:
    """The path of a block's part, and the module there."""
    found = ((path, submodule(block, path)) for path in _PARTS[part])
    return next((path, module) for path, module in found if module is not None)
