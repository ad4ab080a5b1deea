"""Base models: a Stable Diffusion folder of diffusers, a hub id or a single file, its parts loaded when they are needed."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from diffusion_peft.base.known import check_config, check_parts, completed
from diffusion_peft.base.loading import download, first_line, quiet_loading
from diffusion_peft.base.single_file import as_folder, is_single_file
from peft_core.errors import PeftError
from peft_core.files import read_json

Kind = Literal["sd1", "sd2", "sdxl"]
KINDS = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PIPELINES = {"StableDiffusionPipeline": False, "StableDiffusionXLPipeline": True}
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass
class Base:
    """A base model's folder, and the parts of it that are in memory.

    Args:
        name: as the user gave it.
        folder: with model_index.json and a folder a part.
        kind: which Stable Diffusion, told from the configurations.
        dtype: of UNet and text encoders; the VAE stays in float32 (SDXL's gives NaN in float16).
    """

    name: str
    folder: Path
    kind: Kind
    dtype: torch.dtype = torch.float32
    index: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, without loading it.

        Raises:
            PeftError: it is damaged.
        """
        file = next(p for p in _config_files(self.folder, part) if p.is_file())
        found = read_json(file, "get it again")
        if not isinstance(found, dict):
            raise PeftError(f"{file} is damaged, no object of settings: get it again.")
        return completed(part, found)

    def part(self, name: str) -> Any:
        """unet, vae, text_encoder, tokenizer, scheduler …; loaded when first asked for.

        Raises:
            PeftError: its weights are missing or damaged.
        """
        if name not in self.parts:
            library, cls = self.index[name]
            options: dict[str, Any] = {}
            if name in ("unet", "vae", "text_encoder", "text_encoder_2"):
                key = "dtype" if library == "transformers" else "torch_dtype"
                options = {key: torch.float32 if name == "vae" else self.dtype}
            try:
                with quiet_loading():
                    maker = getattr(importlib.import_module(library), cls)
                    loaded = maker.from_pretrained(self.folder / name, **options)
            except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
                raise PeftError(f"{self.name}: its part {name} cannot be loaded ({first_line(error)}).") from error
            if isinstance(loaded, nn.Module):
                loaded.requires_grad_(False).eval()
            self.parts[name] = loaded
        return self.parts[name]

    def free(self, *names: str) -> None:
        """Forget parts that are not needed for now; they are loaded again when asked for."""
        for name in names:
            self.parts.pop(name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def text_parts(self) -> list[str]:
        return ["text_encoder", "text_encoder_2"] if self.kind == "sdxl" else ["text_encoder"]

    @property
    def tokenizers(self) -> list[Any]:
        return [self.part(name.replace("text_encoder", "tokenizer")) for name in self.text_parts]

    @property
    def text_encoders(self) -> list[Any]:
        return [self.part(name) for name in self.text_parts]

    @property
    def prediction_type(self) -> str:
        return self.config("scheduler").get("prediction_type", "epsilon")

    @property
    def shrinks(self) -> int:
        """Pixels of a picture a latent, along each side."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @property
    def least_side(self) -> int:
        """What a picture's sides in pixels must be multiples of: what VAE and UNet can halve without a rest."""
        return self.shrinks * 2 ** (len(self.config("unet")["block_out_channels"]) - 1)

    @property
    def resolution(self) -> int:
        """The side in pixels that the base was trained on."""
        size = self.config("unet").get("sample_size") or 64
        return int(size if isinstance(size, int) else size[0]) * self.shrinks

    def pipeline(self, **parts: Any) -> Any:
        """The stock pipeline of these parts; `parts` stand in for its own."""
        import diffusers

        wanted = [name for name, value in self.index.items() if isinstance(value, list) and value[0]]
        given = {name: parts.get(name, self.part(name)) for name in wanted if name not in _OPTIONAL}
        given |= {name: None for name in _OPTIONAL if name in self.index}
        if self.kind == "sdxl":
            given["add_watermarker"] = False
        else:
            given |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        with quiet_loading():
            pipeline = getattr(diffusers, self.index["_class_name"])(**given)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_base(spec: str, dtype: str = "float32") -> Base:
    """A base by `reference`, a diffusers folder, a hub id, FILE.safetensors or CONFIG_FOLDER@FILE.safetensors.

    Raises:
        PeftError: it is none of these, or lacks a part.
    """
    if spec == "reference":
        from diffusion_peft.reference import PIPELINE as folder

        if not folder.is_dir():
            raise PeftError("the reference model's folder is missing: install the package again.")
    elif is_single_file(spec):
        folder = as_folder(spec)
    elif Path(spec).expanduser().is_dir():
        folder = Path(spec).expanduser().absolute()
    elif spec.startswith(("./", "../", "/", "~")) or spec.count("/") != 1:
        raise PeftError(f"there is no base folder {spec}: give a diffusers folder, a hub id, a file, or `reference`.")
    else:
        folder = download(spec)
    index = _index(spec, folder)
    base = Base(spec, folder, "sd1", DTYPES[dtype], index)
    base.kind = _kind(base)
    _check_trains(base)
    return base


def _index(spec: str, folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        raise PeftError(
            f"{spec} is no base model: it has no model_index.json, which save_pretrained of a pipeline writes."
        )
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") not in _PIPELINES:
        raise PeftError(f"{spec} is a {index.get('_class_name')}; what can be trained is {' or '.join(_PIPELINES)}.")
    for part in _needed(_PIPELINES[index["_class_name"]]):
        if not (index.get(part) or [None])[0] or not any(p.is_file() for p in _config_files(folder, part)):
            raise PeftError(
                f"{spec} lacks its part {part}: a base needs {', '.join(_needed('text_encoder_2' in index))}."
            )
    return index


def _needed(sdxl: bool) -> list[str]:
    texts = ["text_encoder", "tokenizer"] + (["text_encoder_2", "tokenizer_2"] if sdxl else [])
    return ["unet", "vae", *texts, "scheduler"]


def _config_files(folder: Path, part: str) -> Sequence[Path]:
    names = ("config.json", "scheduler_config.json", "tokenizer_config.json")
    return [folder / part / name for name in names]


def _kind(base: Base) -> Kind:
    if base.config("unet").get("addition_embed_type") == "text_time":
        return "sdxl"
    open_clip = base.config("text_encoder").get("hidden_act") == "gelu"  # ViT-H of OpenCLIP; ViT-L has quick_gelu
    return "sd2" if open_clip or base.config("unet")["cross_attention_dim"] == 1024 else "sd1"


def _check_trains(base: Base) -> None:
    """Raises PeftError: a base that is not drawn and trained as Stable Diffusion is."""
    check_parts(base.name, base.index)
    channels, latent = base.config("unet")["in_channels"], base.config("vae")["latent_channels"]
    if channels != latent:
        raise PeftError(
            f"{base.name} is an inpainting or editing model: its UNet takes {channels} channels, not {latent}."
        )
    for part in ("scheduler", "unet", "vae", *base.text_parts):
        check_config(base.name, part, base.config(part))
