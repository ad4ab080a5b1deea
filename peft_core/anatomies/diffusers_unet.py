"""diffusers `UNet2DConditionModel` (Stable Diffusion 1.x, 2.x, XL). Blocks are its down, middle and up blocks in the order
in which they run (9 on SD 1.5, 7 on SDXL), each with all its layers: transformers, convolutions, projections. What serves
every block (conv_in, conv_out, the time embedding) stands outside them; conv_in and conv_out play no role."""

from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, Stream, SubLayer, class_names, join

_UNET = "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel"
_LINEARS = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out.0"}
_CONVS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
_EMBEDDINGS = ("time_embedding.linear_1", "time_embedding.linear_2", "add_embedding.linear_1", "add_embedding.linear_2")


def describe(model: nn.Module) -> Anatomy | None:
    if _UNET not in class_names(model):
        return None
    blocks = [f"down_blocks.{i}" for i in range(len(model.down_blocks))]  # type: ignore[arg-type]
    blocks += ["mid_block"] if model.mid_block is not None else []
    blocks += [f"up_blocks.{i}" for i in range(len(model.up_blocks))]  # type: ignore[arg-type]
    index = {path: i for i, path in enumerate(blocks)}
    anatomy = Anatomy("diffusers UNet", ("attn", "cross_attn"), {None: blocks})
    rising: Any = [] if model.mid_block is None else [model.mid_block, *model.up_blocks]  # type: ignore[misc]
    names = blocks[len(blocks) - len(rising) :] if rising else []
    anatomy.rises = {path: block.resnets[-1].out_channels for path, block in zip(names, rising, strict=True)}
    for name, module in model.named_modules():
        parts = name.split(".")
        if "peft" in parts:  # a branch that copies the encoder has blocks like the UNet's own
            continue
        block = index.get(parts[0], index.get(".".join(parts[:2])))
        if type(module).__name__ == "BasicTransformerBlock":
            assert block is not None
            _transformer_block(anatomy, module, name, block)
        elif name.endswith(("proj_in", "proj_out")):
            anatomy.places.append(Place("proj_io", name, block))
        elif name.endswith(_CONVS) and isinstance(module, nn.Conv2d):
            anatomy.places.append(Place("conv", name, block))
        elif name.endswith("time_emb_proj"):
            anatomy.places.append(Place("time", name, block))
        elif name in _EMBEDDINGS:
            anatomy.places.append(Place("time_embed", name))
        elif isinstance(module, nn.GroupNorm):
            anatomy.places.append(Place("norm", name, block))
    return anatomy


def _transformer_block(anatomy: Anatomy, module: nn.Module, here: str, block: int) -> None:
    transformer = here.rpartition(".transformer_blocks.")[0]
    anatomy.streams[transformer] = Stream(
        module.norm1.normalized_shape[-1],  # type: ignore[union-attr,index]
        tokens_refused="the convolutions between its blocks need every token's place in the picture",
    )
    for number, attention, prefix in ((1, "attn1", ""), (2, "attn2", "cross_")):
        if getattr(module, attention, None) is None:
            continue
        body = join(here, attention)
        anatomy.places += [Place(prefix + role, join(body, path), block) for role, path in _LINEARS.items()]
        # what is asked comes from the stream; in cross attention keys and values come from the text
        readers = ("q",) if prefix else ("q", "k", "v")
        into = tuple(join(body, _LINEARS[role]) for role in readers)
        norm = join(here, f"norm{number}")
        anatomy.sublayers.append(
            SubLayer(f"{prefix}attn", block, norm, body, into, stream=transformer, layer=here, attends=True)
        )
    body = join(here, "ff")
    anatomy.places += [Place("fc1", join(body, "net.0.proj"), block), Place("fc2", join(body, "net.2"), block)]
    into = (join(body, "net.0.proj"),)
    anatomy.sublayers.append(SubLayer("mlp", block, join(here, "norm3"), body, into, stream=transformer, layer=here))
    norms = [n for n in (1, 2, 3) if getattr(module, f"norm{n}", None) is not None]
    anatomy.places += [Place(f"norm{n}", join(here, f"norm{n}"), block) for n in norms]
