"""A control as files of others: what diffusers loads by itself, and plain tensors for short loaders where it has no class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffusion_peft.control.branch import Control, controls_of
from diffusion_peft.control.encoders import SHRINK, stock_parameters
from peft_core.attach import pick
from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.saved.fingerprint import backbone_of, check_backbone

Tensors = dict[str, Tensor]


def write_control(unet: nn.Module, out: Path, name: str | None = None, dtype: torch.dtype | None = None) -> Path:
    """Writes a UNet's control (the only one where `name` is None) as its method does (`ControlMethod.file`); the folder.

    Raises:
        PeftError: no control or several, one that is scaled, or one that no other program can run.
    """
    found = [(adaptation, control) for adaptation, control in controls_of(unet) if name in (None, adaptation)]
    if len(found) != 1:
        raise PeftError(f"this UNet has {len(found)} controls: export one run at a time.")
    (adaptation,) = pick(unet, found[0][0])
    if adaptation.scale != 1.0:
        raise PeftError(
            f"{adaptation.name} is scaled to {adaptation.scale}: set_scale(model, 1.0) before exporting it."
        )
    adaptation.method.write(unet, adaptation, found[0][1], out, dtype)  # type: ignore[attr-defined]
    return out


def write_model(unet: nn.Module, adaptation: Any, control: Any, out: Path, dtype: torch.dtype | None) -> None:
    if getattr(adaptation.method, "join", "zero") != "zero":
        raise PeftError(
            "diffusers' ControlNetModel adds its residuals as they are, and this one normalises them: use the run itself "
            "(load_run), or train with --method.join zero."
        )
    from diffusers import ModelMixin

    net: Any = control.net
    if dtype not in (None, torch.float32):
        net = type(net).from_config(net.config)
        net.load_state_dict(control.net.state_dict())
        net = nn.Module.to(net, dtype)
    ModelMixin.save_pretrained(net, out)


def write_image_prompt(unet: nn.Module, adaptation: Any, control: Any, out: Path, dtype: torch.dtype | None) -> None:
    tensors = {f"image_proj.{key}": value for key, value in original_names(control.net.state_dict()).items()}
    numbers = attention_numbers(unet) if hasattr(unet, "down_blocks") else range(len(control.partners))
    for number, layer in zip(numbers, control.partners, strict=True):
        for name in ("to_k", "to_v"):
            for key, value in getattr(layer.make, name).named_parameters():
                tensors[f"ip_adapter.{number}.{name}_ip.{key}"] = value
    _write(out, "ip_adapter.safetensors", tensors, dtype)


def attention_numbers(unet: Any) -> list[int]:
    """The place that each cross attention has in diffusers' order of attention layers, in the order of the UNet's blocks.

    Its order is that of the modules (down, up, mid), the anatomy's that of the run (down, mid, up).
    """
    from peft_core.anatomies import anatomy_of

    known = [key.removesuffix(".processor") for key in unet.attn_processors if "peft" not in key.split(".")]
    return [known.index(layer.body) for layer in anatomy_of(unet).sublayers if layer.kind == "cross_attn"]


def original_names(state: Tensors) -> Tensors:
    """An image projection's tensors under the names of the authors' files, by which loaders tell its kind."""
    if "image_embeds.weight" in state:
        return {key.replace("image_embeds", "proj"): value for key, value in state.items()}
    found: Tensors = {}
    for key, value in state.items():
        if ".attn.to_k." in key:
            both = torch.cat([value, state[key.replace("to_k", "to_v")]])
            found[key.replace(".attn.to_k.", ".0.to_kv.")] = both
        elif ".attn.to_v." not in key:
            for ours, theirs in _RESAMPLER.items():
                key = key.replace(ours, theirs)
            found[key] = value
    return found


_RESAMPLER = {".ln0.": ".0.norm1.", ".ln1.": ".0.norm2.", ".attn.to_out.0.": ".0.to_out.", ".attn.to_q.": ".0.to_q.",
              ".ff.1.net.0.proj.": ".1.1.", ".ff.1.net.2.": ".1.3.", ".ff.0.": ".1.0."}  # fmt: skip


def write_grounding(unet: nn.Module, adaptation: Any, control: Control, out: Path, dtype: torch.dtype | None) -> None:
    tensors = gligen_tensors(unet, control)
    mark = {"base": json.dumps(backbone_of(unet))}
    _write(out, "gligen.safetensors", tensors, dtype, mark)
    gated(unet, tensors).save_pretrained(out / "unet")


def gligen_tensors(unet: nn.Module, control: Any) -> Tensors:
    """Grounding tokens' network and fusers under the names that they have in a gated UNet."""
    from peft_core.anatomies import anatomy_of

    layers = [str(layer.layer) for layer in anatomy_of(unet).sublayers if layer.kind == "cross_attn"]
    found = {f"position_net.{key}": value for key, value in control.net.state_dict().items()}
    for layer, fuser in zip(layers, control.partners, strict=True):
        found |= {f"{layer}.fuser.{key}": value for key, value in fuser.net.state_dict().items()}
    return found


def gated(unet: Any, tensors: Tensors) -> Any:
    """A stock UNet with `attention_type: gated` of a base's weights and GLIGEN's."""
    from diffusers import UNet2DConditionModel

    config = {key: value for key, value in unet.config.items() if key != "_use_default_values"} | {
        "attention_type": "gated"
    }
    with torch.device("meta"):
        model: Any = UNet2DConditionModel.from_config(config)
    own = {key: value.detach() for key, value in stock_parameters(unet).items()}
    dtype = next(iter(own.values())).dtype
    state = own | {key: value.detach().to(dtype) for key, value in tensors.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def read_gligen(unet: nn.Module, file: str | Path, force: bool = False) -> Any:
    """A UNet for `StableDiffusionGLIGENPipeline` from a base's UNet and an adapter-only file `gligen.safetensors`.

    Raises:
        PeftError: the file is for another base (unless `force`).
    """
    with safe_open(file, framework="pt") as content:
        mark = json.loads((content.metadata() or {}).get("base", "null"))
    if mark is None:
        raise PeftError(
            f"{file} does not say which base it is for: it is no file that `export --format control` wrote."
        )
    if not force:
        check_backbone(unet, mark, Path(file))
    return gated(unet, load_file(file))


def write_changes(unet: nn.Module, adaptation: Any, control: Any, out: Path, dtype: torch.dtype | None) -> None:
    tensors = {key: value for key, value in control.state_dict().items() if not key.startswith("changes.")}
    for path, change in control.changes.items():
        key = f"{path.replace('/', '.')}.weight"
        tensors |= {f"{key}.down": change.A, f"{key}.up": change.B * change.scale}
    header = {"conditioning_embedding_out_channels": json.dumps(control.net.config.conditioning_embedding_out_channels)}
    _write(out, "control_lora.safetensors", tensors, dtype, header)


def write_light(unet: nn.Module, adaptation: Any, control: Any, out: Path, dtype: torch.dtype | None) -> None:
    _write(
        out,
        "controlnext.safetensors",
        control.net.state_dict(),
        dtype,
        {"shrink": str(adaptation.method.shrink or SHRINK)},
    )
    parameters = dict(unet.named_parameters())
    increments = {key: parameters[key] - adaptation.originals[key] for key in adaptation.trained}
    _write(out, "increments.safetensors", increments, dtype)


def _write(
    out: Path, name: str, tensors: Tensors, dtype: torch.dtype | None, header: dict[str, str] | None = None
) -> None:
    plain = {key: value.detach().cpu().to(dtype or value.dtype).contiguous() for key, value in tensors.items()}
    write_files(out, {name: save(plain, {"format": "pt"} | (header or {}))})
