"""Base models: a folder of diffusers, a hub id or a single file, its parts loaded when they are needed."""

from __future__ import annotations

import gc
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_peft.base.families import Family, families
from diffusion_peft.base.known import check_config, check_parts, completed
from diffusion_peft.base.loading import download, first_line, is_hub_id, quiet_loading
from diffusion_peft.base.offload import mapped
from diffusion_peft.base.single_file import as_folder, is_single_file
from peft_core.errors import PeftError
from peft_core.files import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LEFT_OUT = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")) | dict.fromkeys(
    ("add_watermarker", "requires_safety_checker"), False
)
"""What pipelines do besides drawing, and how each is told not to."""


@dataclass
class Base:
    """A base model's folder, and the parts of it that are in memory.

    Args:
        name: as the user gave it.
        folder: with model_index.json and a folder a part.
        family: what is known of bases like it.
        dtype: of denoiser and text encoders; the VAE stays in float32 (SDXL's gives NaN in float16).
        offload: whether the denoiser's weights stay on disk (`base.offload`).
    """

    name: str
    folder: Path
    family: Family
    dtype: torch.dtype = torch.float32
    index: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    offload: bool = False

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, without loading it.

        Raises:
            PeftError: it is damaged.
        """
        file = next(p for p in _config_files(self.folder, part) if p.is_file())
        found = read_json(file, "get it again")
        if not isinstance(found, dict):
            raise PeftError(f"{file} is damaged, no object of settings: get it again.")
        return completed(self.family, part, found)

    def part(self, name: str) -> Any:
        """unet, transformer, vae, text_encoder, tokenizer, scheduler …; loaded when first asked for.

        Raises:
            PeftError: its weights are missing or damaged.
        """
        if name not in self.parts:
            library, cls = self.index[name]
            options: dict[str, Any] = {}
            if name in (self.denoiser, "vae", *self.family.texts):
                key = "dtype" if library == "transformers" else "torch_dtype"
                options = {key: torch.float32 if name == "vae" else self.dtype}
            try:
                with quiet_loading():
                    maker = getattr(importlib.import_module(library), cls)
                    if name == self.denoiser and self.offload:
                        loaded = mapped(maker, self.folder / name, self.dtype)
                    else:
                        loaded = maker.from_pretrained(self.folder / name, **options)
            except PeftError:
                raise
            except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
                raise PeftError(f"{self.name}: its part {name} cannot be loaded ({first_line(error)}).") from error
            if name == self.denoiser and self.edits:
                self.family.widen(self, loaded)
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
    def kind(self) -> str:
        return self.family.kind

    @property
    def denoiser(self) -> str:
        """The part that is adapted."""
        return self.family.denoiser

    @property
    def edits(self) -> bool:
        """Whether its denoiser is told a source picture too."""
        return self.index["_class_name"] == self.family.editor

    def take_sources(self) -> None:
        """Makes it a base whose denoiser is told a source picture too, drawn by its family's editing pipeline.

        Raises:
            PeftError: there is none.
        """
        if self.edits:
            return
        if self.family.editor is None:
            raise PeftError(
                f"{self.name} is {self.family.title}, which takes no source picture: pairs of source and target are for "
                f"{', '.join(each.title for each in families() if each.editor)}."
            )
        import diffusers

        takes = inspect.signature(getattr(diffusers, self.family.editor).__init__).parameters
        kept = {name: value for name, value in self.index.items() if not isinstance(value, list) or name in takes}
        self.index = kept | {"_class_name": self.family.editor}
        self.free(self.denoiser)

    @property
    def text_parts(self) -> list[str]:
        return [name for name in self.family.texts if self.has(name)]

    def has(self, part: str) -> bool:
        return bool((self.index.get(part) or [None])[0])

    @property
    def tokenizers(self) -> list[Any]:
        return [self.part(name.replace("text_encoder", "tokenizer")) for name in self.text_parts]

    @property
    def text_encoders(self) -> list[Any]:
        return [self.part(name) for name in self.text_parts]

    @property
    def prediction_type(self) -> str:
        """epsilon, v_prediction or flow."""
        return "flow" if self.family.flows else self.config("scheduler").get("prediction_type", "epsilon")

    @property
    def shrinks(self) -> int:
        """Pixels of a picture a latent, along each side."""
        return self.family.shrinks(self)

    @property
    def least_side(self) -> int:
        """What a picture's sides in pixels must be multiples of: what VAE and denoiser can divide without a rest."""
        return self.family.least_side(self)

    @property
    def resolution(self) -> int:
        """The side in pixels that the base was trained on."""
        return self.family.resolution(self)

    def pipeline(self, **parts: Any) -> Any:
        """The stock pipeline of these parts; `parts` stand in for its own."""
        import diffusers

        cls = getattr(diffusers, self.index["_class_name"])
        settings = inspect.signature(cls.__init__).parameters
        given = {name: value for name, value in self.index.items() if isinstance(value, list) or name in settings}
        for name, value in given.items():
            if isinstance(value, list) and name not in _LEFT_OUT:
                given[name] = (parts[name] if name in parts else self.part(name)) if self.has(name) else None
        given |= {name: value for name, value in _LEFT_OUT.items() if name in settings}
        with quiet_loading():
            pipeline = cls(**given)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def text_pipeline(self, **parts: Any) -> Any:
        """The stock pipeline with text encoders and tokenizers alone, and these parts."""
        rest = [name for name in self.index if not name.startswith(("text_encoder", "tokenizer", "scheduler"))]
        return self.pipeline(**dict.fromkeys(rest) | parts)


def load_base(spec: str, dtype: str = "float32", offload: str = "none") -> Base:
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
    elif is_hub_id(spec):
        folder = download(spec)
    else:
        raise PeftError(f"there is no base folder {spec}: give a diffusers folder, a hub id, a file, or `reference`.")
    index, kin = _index(spec, folder)
    base = Base(spec, folder, kin[0], DTYPES[dtype], index, offload=offload == "blocks")
    base.family = next((family for family in kin if family.claims(base)), kin[0])
    check_parts(base.family, base.name, base.index)
    base.family.check(base)
    for part in ("scheduler", base.denoiser, "vae", *base.text_parts):
        check_config(base.family, base.name, part, base.config(part))
    return base


def _index(spec: str, folder: Path) -> tuple[dict[str, Any], list[Family]]:
    """What a folder says it holds, and the families that have such a pipeline."""
    if not (folder / "model_index.json").is_file():
        raise PeftError(
            f"{spec} is no base model: it has no model_index.json, which save_pretrained of a pipeline writes."
        )
    index = read_json(folder / "model_index.json")
    kin = [family for family in families() if index.get("_class_name") in family.pipelines]
    if not kin:
        known = sorted({name for family in families() for name in family.pipelines})
        raise PeftError(f"{spec} is a {index.get('_class_name')}; what can be trained is {' or '.join(known)}.")
    needed = _needed(kin[0], index)
    for part in needed:
        if not (index.get(part) or [None])[0] or not any(p.is_file() for p in _config_files(folder, part)):
            raise PeftError(f"{spec} lacks its part {part}: a base needs {', '.join(needed)}.")
    return index, kin


def _needed(family: Family, index: dict[str, Any]) -> list[str]:
    texts = [part for part in family.texts if part not in family.optional or (index.get(part) or [None])[0]]
    pairs = [name for part in texts for name in (part, part.replace("text_encoder", "tokenizer"))]
    return [family.denoiser, "vae", *pairs, "scheduler"]


def _config_files(folder: Path, part: str) -> Sequence[Path]:
    names = ("config.json", "scheduler_config.json", "tokenizer_config.json")
    return [folder / part / name for name in names]
