"""diffusers' and PEFT's LoRA files: `pytorch_lora_weights.safetensors` for `load_lora_weights`.

What is written: PEFT's key names for UNet or transformer throughout (`unet.….lora_A.weight`), since with mixed names the
loader drops all that differ from the first; `lora_linear_layer` for text encoders, the one form that loads whichever of
their layers are adapted; their paths with `text_model.`, as older versions have it. The scale is folded into B, so that
alpha = rank and a loader that does not read the header gives the same pictures; the header states ranks and alphas all the
same.
"""

import json
import re
from collections import Counter
from typing import Any

from torch import Tensor

from diffusion_peft.files.layers import Layer
from diffusion_peft.files.source import DENOISERS, Parts, Source, adapter_metadata, weight_at
from peft_core.errors import PeftError

FILE_NAME = "pytorch_lora_weights.safetensors"
_PARTS = ("text_encoder_2", "text_encoder", *DENOISERS)
_KEY = re.compile(
    r"(?P<path>.+?)\.(?P<what>lora_[AB](?:\.[^.]+)?\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|"
    r"lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|alpha)"
)
_PREFIXES = {
    "text_encoders.clip_l.transformer": "text_encoder", "clip_l.transformer": "text_encoder",
    "text_encoders.clip_g.transformer": "text_encoder_2", "clip_g.transformer": "text_encoder_2",
}  # fmt: skip
"""How ComfyUI calls the parts."""
_OLD = re.compile(r"(.+)\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight")


def write(parts: Parts) -> tuple[dict[str, Tensor], dict[str, str]]:
    odd = {layer.kind for found in parts.layers.values() for layer in found.values() if layer.normed}
    if wrong := sorted((parts.kinds() - {"lora", "dora"}) | odd):
        raise PeftError(
            f"diffusers loads no {' or '.join(wrong)} files: export as kohya, as plain LoRA (--as lora), or merge(model) and "
            "save the pipeline."
        )
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for part, layers in parts.layers.items():
        if len({layer.kind for layer in layers.values()}) > 1:
            raise PeftError(f"diffusers cannot mix lora and dora within {part}: export as kohya.")
        for path, layer in layers.items():
            tensors |= _tensors(part, path, layer, weight_at(parts.models[part], path))
        metadata |= {f"{part}.{key}": value for key, value in _config(layers).items()}
    return tensors, {"lora_adapter_metadata": json.dumps(metadata)}


def notes(parts: Parts) -> list[str]:
    return []


def _tensors(part: str, path: str, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
    down, up = layer.tensors["A"], layer.tensors["B"] * layer.scale
    if weight.dim() == 4:
        down, up = down.view(-1, *weight.shape[1:]), up.view(*up.shape, 1, 1)
    if part in DENOISERS:
        base, names = f"{part}.{path}", ("lora_A.weight", "lora_B.weight")
    else:
        base = f"{part}.text_model.{path.removeprefix('text_model.')}"
        names = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
        if path == "text_projection":
            base, names = f"{part}.{path}", ("lora.down.weight", "lora.up.weight")
    found = dict(zip((f"{base}.{name}" for name in names), (down, up), strict=True))
    if layer.kind == "dora":
        magnitude = layer.tensors["magnitude"]
        # transformers 5 finds a text encoder's magnitudes under this name only, PEFT finds them under both
        name = "lora_magnitude_vector" if part in DENOISERS else "lora_magnitude_vector.weight"
        found[f"{base}.{name}"] = magnitude.view(1, -1, 1, 1) if weight.dim() == 4 else magnitude
    return found


def _config(layers: dict[str, Layer]) -> dict[str, Any]:
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    paths = {path.removeprefix("text_model."): layer for path, layer in layers.items()}
    others = {path: layer.rank for path, layer in paths.items() if layer.rank != rank}
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(paths),
        "use_dora": any(layer.kind == "dora" for layer in layers.values()),
        "bias": "none",
    }


# ---- reading -------------------------------------------------------------------------------------------------------


def claims(keys: dict[str, Tensor]) -> bool:
    return any(
        re.search(r"\.lora_A(\.[^.]+)?\.weight$|\.lora(_linear_layer)?\.down\.weight$|_lora\.down\.weight$", k)
        for k in keys
    )


def read(source: Source) -> tuple[dict[str, dict[str, Layer]], list[str]]:
    metadata = adapter_metadata(source)
    grouped: dict[tuple[str, str], dict[str, Tensor]] = {}
    keys: dict[tuple[str, str], list[str]] = {}
    unmatched = []
    for key, value in source.tensors.items():
        part, path, what = _parse(key, source.denoiser)
        module = None if what is None else source.module(part, path)
        if module is None or what is None:
            unmatched.append(key)
            continue
        grouped.setdefault((part, module), {})[what] = value.float() if value.dtype.itemsize < 4 else value
        keys.setdefault((part, module), []).append(key)
    layers: dict[str, dict[str, Layer]] = {}
    for (part, path), found in grouped.items():
        if not {"A", "B"} <= found.keys():
            unmatched += keys[part, path]
            continue
        a, b = found["A"].flatten(1), found["B"].flatten(1)
        tensors = {"A": a, "B": b}
        if "magnitude" in found:
            tensors["magnitude"] = found["magnitude"].flatten()
        scale = _scale(path, a.shape[0], found, {k.removeprefix(f"{part}."): v for k, v in metadata.items()
                                                 if k.startswith(f"{part}.")} or source.config)  # fmt: skip
        layers.setdefault(part, {})[path] = Layer("dora" if "magnitude" in found else "lora", tensors, scale)
    return layers, unmatched


def _parse(key: str, denoiser: str) -> tuple[str, str, str | None]:
    """Part, module path and A, B, magnitude or alpha (None: none of them)."""
    key = key.removeprefix("base_model.model.")
    for prefix, part in (*_PREFIXES.items(), ("diffusion_model", denoiser)):
        if key.startswith(f"{prefix}."):
            key = f"{part}{key.removeprefix(prefix)}"
    part = next((part for part in _PARTS if key.startswith(part + ".")), None)
    rest = key if part is None else key[len(part) + 1 :]
    if old := _OLD.fullmatch(rest):
        rest = f"{old[1]}.to_{old[2]}{'.0' if old[2] == 'out' else ''}.lora.{old[3]}.weight"
    found = _KEY.fullmatch(rest)
    if found is None:
        return part or denoiser, rest, None
    what = found["what"]
    if "magnitude" in what:
        return part or denoiser, found["path"], "magnitude"
    letter = {"A": "A", "d": "A", "B": "B", "u": "B"}.get(re.sub(r"lora_(?=[AB])|lora(_linear_layer)?\.", "", what)[0])
    return part or denoiser, found["path"], letter or "alpha"


def _scale(path: str, rank: int, found: dict[str, Tensor], config: dict[str, Any]) -> float:
    if "alpha" in found:
        return float(found["alpha"]) / rank
    if not config:
        return 1.0
    alpha = _of(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", rank))
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _of(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the path, or the path's end after a dot."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
