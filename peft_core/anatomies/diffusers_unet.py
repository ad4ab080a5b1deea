"""diffusers `UNet2DConditionModel` (Stable Diffusion 1.x, 2.x, XL). Blocks are its transformer blocks, in the order of
`named_modules`: down, up, middle. Convolutions, time and projection layers stand outside them."""

from torch import nn

from peft_core.anatomies import Anatomy, Place, SubLayer, class_names, join

_UNET = "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel"
_LINEARS = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"}
_CONVS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
_TIME = ("time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")
_ADDED = ("add_embedding.linear_1", "add_embedding.linear_2")


def describe(model: nn.Module, at: str) -> Anatomy | None:
    if _UNET not in class_names(model):
        return None
    anatomy = Anatomy("diffusers UNet", ("attn", "cross_attn"), {None: []})
    for name, module in model.named_modules():
        here = join(at, name)
        if type(module).__name__ == "BasicTransformerBlock":
            _block(anatomy, module, here)
        elif name.endswith(("proj_in", "proj_out")):
            anatomy.places.append(Place("proj_io", here))
        elif name.endswith(_CONVS) and isinstance(module, nn.Conv2d):
            anatomy.places.append(Place("conv", here))
        elif name.endswith(_TIME + _ADDED):
            anatomy.places.append(Place("time", here))
        elif isinstance(module, nn.GroupNorm):
            anatomy.places.append(Place("norm", here))
    return anatomy


def _block(anatomy: Anatomy, block: nn.Module, here: str) -> None:
    index = len(anatomy.blocks[None])
    anatomy.blocks[None].append(here)
    for number, attention, prefix in ((1, "attn1", ""), (2, "attn2", "cross_")):
        if getattr(block, attention, None) is None:
            continue
        body = join(here, attention)
        anatomy.places += [Place(prefix + role, join(body, path), index) for role, path in _LINEARS.items()]
        anatomy.sublayers.append(SubLayer(f"{prefix}attn", index, join(here, f"norm{number}"), body, body))
    body = join(here, "ff")
    anatomy.places += [Place("fc1", join(body, "net.0.proj"), index), Place("fc2", join(body, "net.2"), index)]
    anatomy.sublayers.append(SubLayer("mlp", index, join(here, "norm3"), body, body))
    anatomy.places += [
        Place(f"norm{n}", join(here, f"norm{n}"), index) for n in (1, 2, 3) if hasattr(block, f"norm{n}")
    ]
