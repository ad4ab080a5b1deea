"""kohya's LoRA files, which A1111 and ComfyUI read, with LyCORIS' keys for what is no plain LoRA (`files.lycoris`).

A module's name is its path with `_` for `.`, after `lora_unet_`, `lora_te_` (`lora_te1_`, `lora_te2_` for SDXL, whose UNet
names are Stability's; those of Flux and Stable Diffusion 3 are their authors', with q, k and v in one). What is written:
one alpha for all layers of a model, and what a layer's scale differs by in its last factor, since diffusers takes a single
alpha from such files; Tucker cores multiplied out, which readers disagree on; a text encoder with q, k, v alone gets an
out_proj that adds 0, without which diffusers refuses the file.
"""

import json
import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.base.families import family_of
from diffusion_peft.files.fused import Spot, fused, rows_in, split, spots_of
from diffusion_peft.files.layers import RANKLESS, Layer, misfit
from diffusion_peft.files.lycoris import SUFFIXES, read_layer, write_layer
from diffusion_peft.files.sgm import sgm_path
from diffusion_peft.files.source import DENOISERS, Parts, Source, is_sdxl, weight_at
from peft_core.errors import PeftError

FILE_NAME = "lora.safetensors"
_SD_SCRIPTS = r"\.(attentions|resnets|downsamplers|upsamplers)\."
_VERSIONS = {"FluxTransformer2DModel": "flux1", "SD3Transformer2DModel": "sd3"}
_LAYERS = (nn.Linear, nn.Conv2d)
_CHANGED = (*_LAYERS, nn.LayerNorm, nn.GroupNorm)


def write(parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    sdxl = is_sdxl(parts.models)
    alphas: dict[str, float] = {}
    for part, layers in parts.layers.items():
        model, names = parts.models[part], {}
        if part == "transformer":
            found = _original(model, layers)
        else:
            names = {path: name for name, path in _names(part, model, sdxl, _CHANGED).items()}
            if unnamed := [path for path in layers if path not in names]:
                raise PeftError(f"kohya's files have no name for {part}.{unnamed[0]}: leave it out of targets.")
            found = {names[path]: (layer, weight_at(model, path)) for path, layer in layers.items()}
        alphas[part] = _alpha([layer for layer, _ in found.values()])
        for name, (layer, weight) in found.items():
            tensors |= {f"{name}.{key}": value for key, value in write_layer(layer, weight, alphas[part]).items()}
        if part not in DENOISERS and not any("out_proj" in path or "mlp" in path for path in layers):
            tensors |= _no_change(layers, names, alphas[part])
    return tensors, _header(parts, sdxl, alphas)


def _original(model: nn.Module, layers: dict[str, Layer]) -> dict[str, tuple[Layer, Tensor]]:
    """A transformer's layers under its authors' names in kohya's form, each with a weight of its shape.

    Raises:
        PeftError: a family, or a module, that kohya's files have no name for.
    """
    modules = _modules(model)
    names = {path: name for name, spots in modules.items() for path in spots}
    grouped: dict[str, dict[str, Layer]] = {}
    for path, layer in layers.items():
        if path not in names:
            raise PeftError(
                f"kohya's files have no name for transformer.{path}: leave it out of targets, or write diffusers_lora."
                if names
                else f"kohya's files have no names for a {type(model).__name__}: write diffusers_lora."
            )
        grouped.setdefault(names[path], {})[path] = layer
    return {name: (fused(modules[name], own), _like(model, modules[name])) for name, own in grouped.items()}


def _modules(model: nn.Module) -> dict[str, dict[str, Spot]]:
    """kohya's name of each of the authors' modules -> the spots in it, by path."""
    family = family_of(model)
    found: dict[str, dict[str, Spot]] = {}
    for path, spot in ({} if family is None else spots_of(model, *family.original(model))).items():
        found.setdefault(f"lora_unet_{spot.name.replace('.', '_')}", {})[path] = spot
    return found


def _like(model: nn.Module, spots: dict[str, Spot]) -> Tensor:
    """A weight of the authors' module's shape."""
    return torch.empty(rows_in(spots), *weight_at(model, next(iter(spots))).shape[1:], device="meta")


def notes(parts: Parts) -> list[str]:
    """Which programs read the file otherwise than it was trained: LyCORIS, sd-scripts and diffusers were run on such files, of
    A1111 and ComfyUI their rules for a magnitude (docs/diffusion.md)."""
    kinds, found = parts.kinds(), []
    if "dora" in kinds or any(layer.normed for layers in parts.layers.values() for layer in layers.values()):
        found.append(
            "of this file's magnitudes LyCORIS makes what was trained; by the rules of A1111 and ComfyUI other weights come of "
            "them, sd-scripts and diffusers leave them out: --as lora or --as diff writes what these read"
        )
    if kinds & {"loha", "lokr", "full"}:
        found.append(
            "sd-scripts' own networks.lora loads nothing of this file and says nothing (its --network_module lycoris.kohya "
            "does), and stock diffusers refuses it: --as lora is for these"
        )
    if "transformer" in parts.layers:
        return found
    outside = [path for path in parts.layers.get("unet", {}) if not re.search(_SD_SCRIPTS, path)]
    if outside and kinds <= {"lora"}:
        found.append(f"sd-scripts leaves out layers outside of resnets and transformers ({outside[0]} …)")
    return found


def _alpha(layers: list[Layer]) -> float:
    """The commonest alpha of the layers that have a rank."""
    found = Counter(layer.scale * layer.rank for layer in layers if layer.kind not in RANKLESS)
    return found.most_common(1)[0][0] if found else 1.0


def _no_change(layers: dict[str, Layer], names: dict[str, str], alpha: float) -> dict[str, Tensor]:
    path, layer = next(iter(layers.items()))
    if {each.kind for each in layers.values()} != {"lora"}:
        return {}
    name = names[path.rpartition(".")[0] + ".out_proj"]
    down, up = torch.zeros_like(layer.tensors["A"]), torch.zeros_like(layer.tensors["B"])
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}


def _header(parts: Parts, sdxl: bool, alphas: dict[str, float]) -> dict[str, str]:
    layers = [layer for found in parts.layers.values() for layer in found.values()]
    rank = Counter(layer.rank for layer in layers).most_common(1)[0][0]
    kinds = parts.kinds()
    arguments: dict[str, Any] = {}
    if kinds != {"lora"}:
        arguments = {"algo": "+".join(sorted({"dora": "lora", "oft": "diag-oft"}.get(kind, kind) for kind in kinds))}
        arguments |= {"dora_wd": "True"} if "dora" in kinds else {}
    config = getattr(parts.models.get("unet"), "config", None)
    if "transformer" in parts.models:
        return _numbers(rank, alphas, arguments) | {
            "ss_base_model_version": _VERSIONS[type(parts.models["transformer"]).__name__]
        }
    second = not sdxl and getattr(config, "cross_attention_dim", 768) == 1024
    return _numbers(rank, alphas, arguments) | {
        "ss_v2": str(second),
        "ss_base_model_version": "sdxl_base_v1-0" if sdxl else "sd_v2" if second else "sd_v1",
    }


def _numbers(rank: int, alphas: dict[str, float], arguments: dict[str, Any]) -> dict[str, str]:
    return {
        "ss_network_module": "lycoris.kohya" if arguments else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(next(iter(alphas.values()))),
        "ss_network_args": json.dumps(arguments),
    }


def _names(part: str, model: nn.Module, sdxl: bool, kinds: tuple[type, ...] = _LAYERS) -> dict[str, str]:
    """kohya's name -> path, of every module of these kinds that has a weight."""
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, kinds) or module._parameters["weight"] is None:
            continue
        if part in DENOISERS:
            name = f"lora_unet_{sgm_path(path, model) if sdxl and part == 'unet' else path}"
        else:
            prefix = ("lora_te1_" if sdxl else "lora_te_") if part == "text_encoder" else "lora_te2_"
            inner = "" if path.startswith(("text_model.", "text_projection")) else "text_model."
            name = f"{prefix}{inner}{path}"
        found[name.replace(".", "_")] = path
    return found


# ---- reading -------------------------------------------------------------------------------------------------------


def claims(keys: dict[str, Tensor]) -> bool:
    return any(
        key.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")) and key.partition(".")[2] in SUFFIXES
        for key in keys
    )


def read(source: Source) -> tuple[dict[str, dict[str, Layer]], list[str]]:
    table: dict[str, tuple[str, str]] = {}
    for part, model in source.models.items():
        for sdxl in (False, True):
            names = _names(part, model, sdxl, _CHANGED) if part != "unet" or not sdxl or source.names else {}
            table |= {name: (part, path) for name, path in names.items()}
            if part in DENOISERS:
                table |= {name.replace("lora_unet", "lycoris", 1): (part, path) for name, path in names.items()}
                table |= {
                    name.replace("lora_unet", "lora_transformer", 1): (part, path) for name, path in names.items()
                }
    transformer = source.models.get("transformer")
    fusing = {} if transformer is None else _modules(transformer)
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in source.tensors.items():
        name, _, suffix = key.partition(".")
        grouped.setdefault(name, {})[suffix] = value.float() if value.dtype.itemsize < 4 else value
    layers: dict[str, dict[str, Layer]] = {}
    unmatched = []
    for name, found in grouped.items():
        if transformer is not None and name in fusing:
            spots, like = fusing[name], _like(transformer, fusing[name])
            layer = read_layer(found, like)
            if layer is None or misfit(layer, like) is not None:
                unmatched += [f"{name}.{suffix}" for suffix in found]
                continue
            weights = [weight_at(transformer, path) for path in spots]
            for path, own in zip(spots, split(layer, [*spots.values()], weights), strict=True):
                if own is not None:
                    layers.setdefault("transformer", {})[path] = own
            continue
        part, path = table.get(name, ("", ""))
        layer = read_layer(found, source.weight(part, path)) if part else None
        if layer is None:
            unmatched += [f"{name}.{suffix}" for suffix in found]
            continue
        layers.setdefault(part, {})[path] = layer
    return layers, unmatched
