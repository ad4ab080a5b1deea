"""kohya's LoRA files, which A1111 and ComfyUI read, with LyCORIS' keys for LoHa, LoKr and DoRA.

A module's name is its path with `_` for `.`, after `lora_unet_`, `lora_te_` (`lora_te1_`, `lora_te2_` for SDXL, whose UNet
names are Stability's). What is written: one alpha for all layers of a model, and what a layer's scale differs by in its
last factor, since diffusers takes a single alpha from such files; Tucker cores multiplied out, which readers disagree on;
a text encoder with q, k, v alone gets an out_proj that adds 0, without which diffusers refuses the file.
"""

import json
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.files.layers import Layer
from diffusion_peft.files.sgm import sgm_name
from diffusion_peft.files.source import Parts, Source, is_sdxl
from peft_core.errors import PeftError

FILE_NAME = "lora.safetensors"
_SUFFIXES = {"lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"}
_HADA = {f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
_LOKR = {f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
_LAST = {"lora": "B", "dora": "B", "loha": "w1_a", "lokr": "w1"}


def write(parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    sdxl = is_sdxl(parts.models)
    alphas: dict[str, float] = {}
    for part, layers in parts.layers.items():
        alphas[part] = Counter(layer.scale * layer.rank for layer in layers.values()).most_common(1)[0][0]
        names = {path: name for name, path in _names(part, parts.models[part], sdxl).items()}
        for path, layer in layers.items():
            if path not in names:
                raise PeftError(f"kohya's files have no name for {part}.{path}: leave it out of targets.")
            weight = parts.models[part].get_submodule(path)._parameters["weight"]
            for key, value in _tensors(layer, weight, alphas[part]).items():  # type: ignore[arg-type]
                tensors[f"{names[path]}.{key}"] = value
        if part != "unet" and not any("out_proj" in path or "mlp" in path for path in layers):
            tensors |= _no_change(layers, names, alphas[part])
    return tensors, _header(parts, sdxl, alphas)


def _tensors(layer: Layer, weight: Tensor, alpha: float) -> dict[str, Tensor]:
    kernel, t = weight.shape[2:], dict(layer.tensors)
    whole = "w1" in t and "w2" in t  # LyCORIS takes a scale of 1 there, whatever alpha says
    factor = layer.scale if whole else layer.scale * layer.rank / alpha
    last = _LAST[layer.kind] if _LAST[layer.kind] in t else "w1_a"
    t[last] = t[last] * factor
    found = {"alpha": torch.tensor(float(layer.rank) if whole else alpha)}
    if layer.kind in ("lora", "dora"):
        down, up = t["A"], t["B"]
        found["lora_down.weight"] = down.view(-1, *weight.shape[1:])
        found["lora_up.weight"] = up.view(*up.shape, *[1] * len(kernel))
        if layer.kind == "dora":
            found["dora_scale"] = t["magnitude"].view(-1, *[1] * (weight.dim() - 1))
        return found
    if layer.kind == "loha":
        return found | {key: t[name] for key, name in _HADA.items() if name in t}
    if "t2" in t:
        t["w2_b"] = torch.einsum("ijhw,jn->inhw", t.pop("t2"), t["w2_b"]).flatten(1)
        t["w2_a"] = t["w2_a"].t()
    return found | {key: t[name] for key, name in _LOKR.items() if name in t}


def _no_change(layers: dict[str, Layer], names: dict[str, str], alpha: float) -> dict[str, Tensor]:
    path, layer = next(iter(layers.items()))
    if layer.kind != "lora":
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
        arguments = {"algo": "+".join(sorted({"dora": "lora"}.get(kind, kind) for kind in kinds))}
        arguments |= {"dora_wd": "True"} if "dora" in kinds else {}
    config = getattr(parts.models.get("unet"), "config", None)
    second = not sdxl and getattr(config, "cross_attention_dim", 768) == 1024
    return {
        "ss_network_module": "lycoris.kohya" if arguments else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(next(iter(alphas.values()))),
        "ss_network_args": json.dumps(arguments),
        "ss_v2": str(second),
        "ss_base_model_version": "sdxl_base_v1-0" if sdxl else "sd_v2" if second else "sd_v1",
    }


def _names(part: str, model: nn.Module, sdxl: bool) -> dict[str, str]:
    """kohya's name -> path, of every weight that can be changed."""
    found = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if part == "unet":
            name = f"lora_unet_{_sgm(path, model) if sdxl else path}"
        else:
            prefix = ("lora_te1_" if sdxl else "lora_te_") if part == "text_encoder" else "lora_te2_"
            inner = "" if path.startswith(("text_model.", "text_projection")) else "text_model."
            name = f"{prefix}{inner}{path}"
        found[name.replace(".", "_")] = path
    return found


def _sgm(path: str, unet: Any) -> str:
    block = unet.get_submodule(".".join(path.split(".")[:2])) if path.startswith("up_blocks.") else None
    return sgm_name(path, unet.config.layers_per_block, hasattr(block, "attentions"))


# ---- reading -------------------------------------------------------------------------------------------------------


def claims(keys: dict[str, Tensor]) -> bool:
    known = _SUFFIXES | _HADA.keys() | _LOKR.keys()
    return any(key.startswith(("lora_unet_", "lora_te", "lycoris_")) and key.partition(".")[2] in known for key in keys)


def read(source: Source) -> tuple[dict[str, dict[str, Layer]], list[str]]:
    table: dict[str, tuple[str, str]] = {}
    for part, model in source.models.items():
        for sdxl in (False, True):
            names = _names(part, model, sdxl) if part != "unet" or _has_layers(model) else {}
            table |= {name: (part, path) for name, path in names.items()}
            if part == "unet":
                table |= {name.replace("lora_unet", "lycoris", 1): (part, path) for name, path in names.items()}
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, value in source.tensors.items():
        name, _, suffix = key.partition(".")
        grouped.setdefault(name, {})[suffix] = value.float() if value.dtype.itemsize < 4 else value
    layers: dict[str, dict[str, Layer]] = {}
    unmatched = []
    for name, found in grouped.items():
        layer = _layer(found) if name in table else None
        if layer is None:
            unmatched += [f"{name}.{suffix}" for suffix in found]
            continue
        part, path = table[name]
        layers.setdefault(part, {})[path] = layer
    return layers, unmatched


def _has_layers(unet: nn.Module) -> bool:
    return isinstance(getattr(getattr(unet, "config", None), "layers_per_block", None), int)


def _layer(found: dict[str, Tensor]) -> Layer | None:
    """None where a key is none that we know, or one is missing."""
    alpha = float(found["alpha"]) if "alpha" in found else 0.0  # 0, like none at all, means alpha = rank
    suffixes = found.keys() - {"alpha"}
    if suffixes <= _HADA.keys():
        layer = Layer("loha", {name: found[key] for key, name in _HADA.items() if key in found}, 1.0)
        complete = {"w1_a", "w1_b", "w2_a", "w2_b"} <= layer.tensors.keys()
    elif suffixes <= _LOKR.keys():
        layer = Layer("lokr", {name: found[key] for key, name in _LOKR.items() if key in found}, 1.0)
        complete = all(
            {w} <= layer.tensors.keys() or {f"{w}_a", f"{w}_b"} <= layer.tensors.keys() for w in ("w1", "w2")
        )
        if complete and "w2_b" in layer.tensors and "t2" not in layer.tensors:
            layer.tensors["w2_b"] = layer.tensors["w2_b"].flatten(1)
    elif {"lora_down.weight", "lora_up.weight"} <= suffixes <= _SUFFIXES:
        layer, complete = _lora(found), True
    else:
        return None
    if not complete:
        return None
    whole = "w1" in layer.tensors and "w2" in layer.tensors
    return Layer(layer.kind, layer.tensors, 1.0 if whole or not alpha else alpha / layer.rank)


def _lora(found: dict[str, Tensor]) -> Layer:
    down, up = found["lora_down.weight"], found["lora_up.weight"].flatten(1)
    if "lora_mid.weight" in found:  # Tucker form: a 1 × 1 convolution, then the kernel, is one convolution
        down = torch.einsum("ijhw,jc->ichw", found["lora_mid.weight"], down.flatten(1))
    tensors = {"A": down.flatten(1), "B": up}
    if "dora_scale" not in found:
        return Layer("lora", tensors, 1.0)
    return Layer("dora", tensors | {"magnitude": found["dora_scale"].flatten()}, 1.0)
