"""CLIP models by name: the shipped reference model, open_clip's, a folder, or an architecture with a weight file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import open_clip
from peft_data.pictures import Fit
from safetensors import SafetensorError
from torch import nn

from peft_core.errors import PeftError, nearest
from peft_core.jobs.hub.backbone import Backbone, Tokenizer
from peft_core.jobs.hub.reach import PICKLES, in_cache, must_reach
from peft_core.jobs.hub.references import REFERENCE, check_architecture, reference_of
from peft_core.jobs.runs.process import tell

LOOK = ("mean", "std", "interpolation", "resize_mode")


def list_backbones() -> dict[str, str]:
    """Name -> one line: the reference model and every pretrained model of open_clip."""
    found = {REFERENCE: "the small CLIP that is shipped with this package; no download"}
    for architecture, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(architecture) or {}
        vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
        words = [f"{vision.get('image_size', '?')} px", f"{config.get('embed_dim', '?')} features"]
        words.append(f"texts of {text.get('context_length', 77)} tokens")
        found[f"{architecture}/{tag}"] = ", ".join(words)
    return found


def load_backbone(spec: str) -> tuple[nn.Module, Tokenizer, Backbone]:
    """A pretrained CLIP model (float32, stock), its tokenizer, and what it expects of pictures.

    Args:
        spec: `reference`; open_clip's `ARCHITECTURE/TAG`, such as `ViT-B-16/openai`, or `hf-hub:owner/model`; a folder
            with open_clip_config.json and open_clip_model.safetensors; `ARCHITECTURE@FILE.safetensors`.

    Raises:
        PeftError: an unknown name or tag (with the nearest), weights that cannot be reached, a pickle, a file that does
            not fit the architecture.
    """
    if spec == REFERENCE:
        reference = reference_of("clip_peft")
        model = reference.load()
        return model, reference.tokenizer(), describe(spec, REFERENCE, "", model)
    architecture, at, file = spec.partition("@")
    folder = Path(spec).expanduser()
    if spec.startswith("hf-hub:"):
        repository = spec.partition(":")[2]
        cached = in_cache(repository, "open_clip_config.json") and in_cache(repository, "open_clip_model.safetensors")
        if not cached:
            must_reach(spec, repository)
        source = f"local-dir:{Path(cached).parent}" if cached else spec
        return _made(source, spec, repository, source)
    if at:
        _known(architecture)
        if f"{architecture}-quickgelu" in open_clip.list_models():
            tell(
                f"note: a weight file does not say its activation, and {architecture} has GELU: weights of OpenAI, MetaCLIP and "
                f"DFN were trained with QuickGELU and need {architecture}-quickgelu@{file}"
            )
        weights = _weights(Path(file), architecture)
        look = common_look(architecture)
        return _made(architecture, spec, Path(file).name, architecture, pretrained=weights, force_preprocess_cfg=look)
    if folder.is_dir() or spec.startswith(("./", "../", "/", "~")):
        return _folder(spec, folder)
    architecture, _, tag = spec.partition("/")
    _known(architecture, tag)
    config = dict(open_clip.get_pretrained_cfg(architecture, tag))
    quick = bool(config.get("quick_gelu"))
    if quick and not open_clip.get_model_config(architecture).get("quick_gelu"):  # type: ignore
        tell(
            f"note: the weights {tag} were trained with QuickGELU, which {architecture} does not have: it is turned on, as in "
            f"{architecture}-quickgelu"
        )
    repository = str(config.get("hf_hub") or "").strip("/")
    cached = in_cache(repository, "open_clip_model.safetensors") if repository.count("/") == 1 else None
    if not cached:
        must_reach(spec, repository or None, config.get("url"))
    look = {key: config[key] for key in (*LOOK, "size") if key in config}
    return _made(architecture, spec, tag, architecture, pretrained=cached or tag, force_quick_gelu=quick,
                 force_preprocess_cfg=look)  # fmt: skip


def common_look(architecture: str) -> dict[str, Any]:
    """How pictures are prepared for a weight file of this architecture: what all of its published weights agree on. Where they
    do not, open_clip's default stands, and a note says so."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    looks = {key: {str(config.get(key)): config.get(key) for config in known} for key in LOOK}
    unsure = [key for key in ("mean", "std") if len(looks[key]) > 1]
    if unsure:
        tell(
            f"note: a weight file does not say its {' and '.join(unsure)}, in which {architecture}'s published weights differ: "
            "OpenAI's are taken; a model folder (open_clip_config.json beside the weights) says them"
        )
    agreed = {key: next(iter(values.values())) for key, values in looks.items() if len(values) == 1}
    return {key: value for key, value in agreed.items() if value is not None}


def _known(architecture: str, tag: str | None = None) -> None:
    check_architecture(architecture)
    models = open_clip.list_models()
    if architecture not in models:
        near = nearest(architecture, [REFERENCE, *models])
        raise PeftError(f'unknown backbone "{architecture}"{near}: see `list backbones`, or give a folder.')
    if tag is None:
        return
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        has = f"it has: {', '.join(tags)}" if tags else "it has none: give them as ARCHITECTURE@FILE.safetensors"
        what = (
            f'has no weights "{tag}"{nearest(tag, tags)}'
            if tag
            else f"needs the name of its weights, {architecture}/TAG"
        )
        raise PeftError(f"{architecture} {what} ({has}).")


def _weights(path: Path, architecture: str) -> str:
    path = path.expanduser()
    if path.suffix in PICKLES:
        raise PeftError(f"{path.name} is a pickle, which is never loaded: save the weights as .safetensors.")
    if not path.is_file():
        raise PeftError(f"there is no weight file {path}: check the path after {architecture}@.")
    return str(path)


def _folder(spec: str, folder: Path) -> tuple[nn.Module, Tokenizer, Backbone]:
    if not folder.is_dir():
        raise PeftError(f"there is no model folder {folder}: check the path.")
    if not (folder / "open_clip_config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise PeftError(
            f"{folder} is no model folder: it needs open_clip_config.json and open_clip_model.safetensors, as open_clip "
            "saves them."
        )
    source = f"local-dir:{folder}"
    return _made(source, spec, folder.name, source)


def _made(name: str, spec: str, family: str, tokens: str, **options: Any) -> tuple[nn.Module, Tokenizer, Backbone]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # told by ourselves
            model = open_clip.create_model(name, **options)
            tokenizer = open_clip.get_tokenizer(tokens)
    except (RuntimeError, OSError, KeyError, ValueError, SafetensorError) as error:
        raise PeftError(f"open_clip cannot load {spec}: {' '.join(str(error).split())[:300]}") from error
    architecture = "" if ":" in name else name
    return model, tokenizer, describe(spec, family, architecture, model)


def describe(name: str, family: str, architecture: str, model: Any) -> Backbone:
    """What a CLIP model expects of pictures: its own preprocessing, or OpenAI's mean and std at its size."""
    visual = model.visual
    config = dict(getattr(visual, "preprocess_cfg", None) or {})
    size = config.get("size") or visual.image_size
    size = (size, size) if isinstance(size, int) else (size[0], size[1])
    mean, std = config.get("mean") or open_clip.OPENAI_DATASET_MEAN, config.get("std") or open_clip.OPENAI_DATASET_STD
    return Backbone(name, family, architecture, size, tuple(mean), tuple(std), crop_pct=1.0)


def picture_fit(model: Any, about: Backbone) -> Fit:
    """How pictures come to the model's size: squashed where its preprocessing says so, else the centre of the shorter
    side's resize."""
    config = dict(getattr(model.visual, "preprocess_cfg", None) or {})
    mode = "crop" if config.get("resize_mode", "shortest") == "shortest" else "squash"
    interpolation = config.get("interpolation", "bicubic")
    return Fit(about.input_size, mode, about.crop_pct, interpolation if interpolation != "random" else "bicubic")
