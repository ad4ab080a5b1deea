"""timm models by name: the shipped reference model, timm's, a folder, or an architecture with a weight file."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_core.errors import PeftError, nearest
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.hub.reach import PICKLES, in_cache, must_reach
from peft_core.jobs.hub.references import REFERENCE, check_architecture, reference_of


def list_backbones(pattern: str = "vit_*", sizes: bool = False) -> dict[str, str]:
    """Name -> one line: the reference model and timm's pretrained models that match `pattern`.

    Args:
        sizes: say the parameters too, of models made without memory for their weights.
    """
    found = {REFERENCE: "the small ViT that is shipped with this package; no download"}
    counted: dict[str, str] = {}
    for name in timm.list_pretrained(pattern):
        base = name.partition(".")[0]
        if sizes and base not in counted:
            counted[base] = f", {_parameters(base) / 1e6:.1f} M parameters"
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = "×".join(map(str, config.input_size[-2:])) if config else ""
        mean = ",".join(f"{value:.3g}" for value in config.mean) if config else ""
        found[name] = f"{size}, mean {mean}{counted.get(base, '')}"
    return found


def _parameters(architecture: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(architecture, pretrained=False).parameters())


def load_backbone(spec: str, num_classes: int | None, drop_path: float = 0.0) -> tuple[nn.Module, Backbone]:
    """A pretrained timm model with a new head of `num_classes` classes, or with its own where None, and what it expects of its
    input.

    Args:
        spec: `reference`; a timm name such as `vit_base_patch16_224.augreg_in21k`, or `hf-hub:owner/model`; a folder
            with config.json and model.safetensors; `ARCHITECTURE@FILE` with a .safetensors file, or the .npz files that
            the original ViTs come in.
        drop_path: the rate of the last block's stochastic depth, rising linearly from 0 in the first.

    Raises:
        PeftError: an unknown name (with the nearest), weights that cannot be reached (with how to fetch them), a pickle,
            a file that does not fit the architecture.
    """
    options: dict[str, Any] = {"drop_path_rate": drop_path} | (
        {"num_classes": num_classes} if num_classes is not None else {}
    )
    if spec == REFERENCE:
        if num_classes is None:
            raise PeftError(
                f"the {REFERENCE} model has no head that it was pretrained with: choose a model that has one."
            )
        model = reference_of("vision_peft").load(num_classes, drop_path_rate=drop_path)
        return model, _describe(spec, REFERENCE, model)
    architecture, at, file = spec.partition("@")
    if at and not spec.startswith(("hf-hub:", "hf_hub:")):  # where @ stands before a revision
        model = _create(architecture, pretrained=False, **options)
        _load_weights(model, Path(file).expanduser(), architecture, with_head=num_classes is None)
        return model, _describe(spec, Path(file).name, model)
    folder = Path(spec).expanduser()
    if spec.startswith(("./", "../", "/", "~")) and not folder.is_dir():
        raise PeftError(f"there is no model folder {folder}: check the path.")
    if folder.is_dir() and not timm.is_model(spec.partition(".")[0]):
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise PeftError(
                f"{folder} is no model folder: it needs config.json and model.safetensors, as timm saves them."
            )
        model = _create(f"local-dir:{folder}", pretrained=True, **options)
        return model, _describe(spec, folder.name, model)
    model = _pretrained(spec, options)
    return model, _describe(spec, (model.pretrained_cfg or {}).get("tag") or spec, model)  # type: ignore[union-attr]


def _describe(name: str, family: str, model: nn.Module) -> Backbone:
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config.get("input_size") or (224, 224)
    return Backbone(
        name=name,
        family=family,
        architecture=str(config.get("architecture") or ""),
        input_size=(int(size[-2]), int(size[-1])),
        mean=tuple(config.get("mean") or (0.5, 0.5, 0.5)),
        std=tuple(config.get("std") or (0.5, 0.5, 0.5)),
        crop_pct=float(config.get("crop_pct") or 0.875),
    )


def _create(name: str, **options: Any) -> nn.Module:
    base = name.partition(".")[0]
    check_architecture(base)
    if ":" not in name and not timm.is_model(base):
        known = [REFERENCE, *timm.list_models()]
        raise PeftError(f'unknown backbone "{name}"{nearest(base, known)}: see `list backbones`, or give a folder.')
    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError) as error:
        raise PeftError(f"{name} takes no {', '.join(options)}: {error}; choose a vision transformer.") from error
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise PeftError(f"timm cannot make {name}: {' '.join(str(error).split())[:300]}") from error


def _pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    if name.startswith(("hf-hub:", "hf_hub:")):
        repository = name.partition(":")[2]
        cached = in_cache(repository, "config.json") and in_cache(repository, "model.safetensors")
        if cached:
            return _create(f"local-dir:{Path(cached).parent}", pretrained=True, **options)
        must_reach(name, repository)
        return _create(name, pretrained=True, **options)
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        _create(name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*") if full.partition(".")[0] == base]
    if tag and tag not in tags:
        known = ", ".join(tags) or "none"
        raise PeftError(f'{base} has no weights "{tag}"{nearest(tag, tags)} (it has: {known}).')
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise PeftError(f"{base} has no pretrained weights in timm: give them as {base}@FILE.safetensors.")
    overlay = {}
    if config.hf_hub_id and config.custom_load != "hf":
        filename = str(config.hf_hub_filename or "model.safetensors").replace("pytorch_model.bin", "model.safetensors")
        cached = in_cache(config.hf_hub_id, filename)
        overlay = {"file": cached, "custom_load": False} if cached else {}
    if not overlay:
        must_reach(name, config.hf_hub_id, config.url)  # type: ignore
    return _create(name, pretrained=True, pretrained_cfg_overlay=overlay or None, **options)


def _load_weights(model: nn.Module, path: Path, architecture: str, with_head: bool = False) -> None:
    if path.suffix in PICKLES:
        raise PeftError(f"{path.name} is a pickle, which is never loaded: save the weights as .safetensors.")
    if not path.is_file():
        raise PeftError(f"there is no weight file {path}: check the path after {architecture}@.")
    if path.suffix == ".npz":
        try:
            model.load_pretrained(os.fspath(path))  # type: ignore[operator]
        except (KeyError, ValueError, OSError, AttributeError, RuntimeError) as error:
            raise PeftError(f"{path} holds no weights of {architecture}: {error}.") from error
        return
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PeftError(f"{path} is truncated or no safetensors file: copy it again.") from error
    state = _in_timms_words(state, model, path, architecture)
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    heads = () if with_head else (heads,) if isinstance(heads, str) else tuple(heads)
    own = model.state_dict()
    mine = {key: value for key, value in own.items() if not key.startswith(heads)}
    other = "choose the architecture it is of"
    for key, value in mine.items():
        if key not in state:
            raise PeftError(f"{path} does not fit {architecture}: it has no {key}; {other}.")
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)} in the file and {tuple(value.shape)} in the model"
            raise PeftError(f"{path} does not fit {architecture}: {key} is {shapes}; {other}.")
    if more := sorted(key for key in state if key not in own and not key.startswith(heads)):
        shown = ", ".join(more[:3]) + (f" and {len(more) - 3} more" if more[3:] else "")
        raise PeftError(f"{path} does not fit {architecture}, which has no {shown}: {other}.")
    with torch.no_grad():
        model.load_state_dict({key: state[key] for key in mine}, strict=False)


def _in_timms_words(state: dict[str, Tensor], model: nn.Module, path: Path, architecture: str) -> dict[str, Tensor]:
    """A checkpoint under timm's keys and at the model's size: wrappers' prefixes off, then the family's own filter of timm."""
    if hasattr(model, "map_keys"):
        return model.map_keys(state)  # type: ignore[operator]
    while state and (prefix := next((p for p in ("module.", "model.") if all(k.startswith(p) for k in state)), "")):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    homes = (timm.model_entrypoint(architecture.partition(".")[0]).__module__, type(model).__module__)
    clean = next((f for home in homes if (f := getattr(sys.modules[home], "checkpoint_filter_fn", None))), None)
    if clean is None:
        return state
    # what timm itself hands to the filter: DeiT-III's old names of layer scale, FlexiViT's way to resize
    options: dict[str, Any] = {"adapt_layer_scale": True} if any(".gamma_" in key for key in state) else {}
    options |= {"interpolation": "bilinear", "antialias": False} if "flexi" in architecture else {}
    known = inspect.signature(clean).parameters
    try:
        return clean(state, model, **{key: value for key, value in options.items() if key in known})
    except (RuntimeError, KeyError, ValueError, AttributeError, AssertionError, IndexError) as error:
        raise PeftError(f"{path} holds no weights of {architecture}: {' '.join(str(error).split())[:300]}.") from error
