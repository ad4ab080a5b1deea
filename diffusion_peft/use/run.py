"""Finished runs in use: a base with one adapter or several, ready to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.base.bases import Base, load_base
from diffusion_peft.base.offload import check_offload
from diffusion_peft.base.texts import check_length
from diffusion_peft.drawing.composing import Composition, Way
from diffusion_peft.drawing.draw import (
    Chunk,
    Drawing,
    calls_of,
    check_drawing,
    check_precision,
    draw,
    drawing_device,
    embed,
    embed_negative,
)
from diffusion_peft.drawing.scaling import set_scales
from diffusion_peft.editing.options import is_edit
from diffusion_peft.use.adapters import add_file, add_run, check_there, config_of, short_names
from peft_core.errors import PeftError
from peft_core.jobs.runs.process import tell

if TYPE_CHECKING:
    from diffusion_peft.control.use import Given, Use


@dataclass
class Run:
    """What `peft_core.load_run` gives for a diffusion run: a base, and the adapters that were put on it.

    Args:
        base: its parts are adapted in place.
        clip_skip: as the run was trained.
        tokens: new tokens and their numbers of vectors.
        names: the adapters by name, with their cards ({} for files of other tools).
        controls: those of them that draw under a condition.
        frames: of the films that they were trained on.
    """

    base: Base
    clip_skip: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    names: dict[str, dict[str, Any]] = field(default_factory=dict)
    controls: list[Use] = field(default_factory=list)
    frames: int = 1

    @property
    def unet(self) -> nn.Module:
        """The denoiser: a UNet, or a transformer."""
        return self.base.part(self.base.denoiser)

    @property
    def models(self) -> dict[str, nn.Module]:
        """Denoiser and text encoders by part."""
        return {self.base.denoiser: self.unet} | dict(zip(self.base.text_parts, self.base.text_encoders, strict=True))

    def set_scale(self, scale: float, name: str | None = None) -> None:
        """Weighs one adapter, or all: 0 is the base, 1 the adapter as trained; new tokens stay.

        Raises:
            PeftError: an adapter that keeps no originals, or that has new tokens alone.
        """
        found = set_scales(self.models.values(), scale, f"{name}__" if name else "")
        if not found and scale != 1.0:
            raise PeftError("an adapter of new tokens alone has no scale: leave the token out of the prompt instead.")

    def sample(
        self,
        prompts: str | Sequence[str],
        count: int = 1,
        seed: int = 0,
        negative: str = "",
        how: Drawing | None = None,
        conditions: Sequence[Given] = (),
        until: float | None = None,
        source: Tensor | None = None,
        way: Way = "add",
        every: int = 5,
    ) -> list[list[Image.Image]]:
        """`count` pictures of each prompt, with seeds seed, seed + 1, …

        Args:
            source: latents of the picture that all are made of (`editing.use`), of bases that draw from one.
            conditions: one for each of `controls`, a picture or boxes, for all pictures; without any, they are off.
            until: share of the denoising steps in which controls act; each run's own where None.
            way: how several adapters act (`drawing.composing`). every: steps between two of them by turns.

        Raises:
            PeftError: a prompt of too many tokens, another number of conditions than of controls, adapters that cannot act so.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        asked = [(text, seed + n) for text in texts for n in range(count)]
        given = [[each] * len(asked) for each in conditions]
        how = how or Drawing()
        sources = [] if source is None else [source] * len(asked)
        composition = self.composed(way, how, every)
        pictures = self.draw_each(asked, how, given, negative, until, sources=sources, composition=composition)
        return [pictures[start : start + count] for start in range(0, len(pictures), count)]

    def draw_each(
        self,
        asked: Sequence[tuple[str, int]],
        how: Drawing,
        conditions: Sequence[Sequence[Given]] = (),
        negative: str = "",
        until: float | None = None,
        done: Callable[[int, Image.Image], object] = lambda number, image: None,
        sources: Sequence[Tensor] = (),
        composition: Composition | None = None,
    ) -> list[Image.Image]:
        """A picture for each (prompt, seed); `conditions` are, for each control, one a picture, `sources` one a picture.

        Raises:
            PeftError: a prompt of too many tokens, another number of conditions than of controls, a source too few or too much.
        """
        if not sources and self.base.family.must_have_source(self.base):
            raise PeftError(f"{self.base.name} draws from a source picture: give one with `sample --source`.")
        if len(sources) and not self.base.edits:
            raise PeftError(f"{self.base.name} takes no source picture: leave it out, or give an editing base or run.")
        for text in dict.fromkeys(text for text, _ in asked):
            check_length(self.base, text, "the prompt")
        check_length(self.base, negative, "the negative prompt")
        check_drawing(self.base, how)
        device = drawing_device()
        for model in self.models.values():
            model.to(device)
        known = {text: embed(self.base, text, self.clip_skip) for text in dict.fromkeys(text for text, _ in asked)}
        against = embed_negative(self.base, negative, self.clip_skip)
        wanted = [(known[text], seed) for text, seed in asked]
        before = self.before(conditions, how, until)
        more = {"sources": sources, "composition": composition}
        return draw(self.base, self.unet, wanted, against, how, done=done, before=before, **more)  # type: ignore[arg-type]

    def composed(self, way: Way, how: Drawing, every: int = 5) -> Composition | None:
        """How the adapters act; None where all do all the time.

        Raises:
            PeftError: too few or too many of them, a base or controls with which they cannot act so.
        """
        if way == "add":
            return None
        from diffusion_peft.use.composed import composition_of

        return composition_of(self, way, calls_of(self.base, how.steps), every)

    def before(
        self, conditions: Sequence[Sequence[Given]], how: Drawing, until: float | None = None
    ) -> Callable[[Chunk], object]:
        """What `draw` calls before each batch; `conditions` are, for each control, one a picture."""
        if not conditions:
            return lambda chunk: None
        if len(conditions) != len(self.controls):
            raise PeftError(f"there are {len(conditions)} conditions and {len(self.controls)} controls.")
        from diffusion_peft.control.use import giving

        side = self.base.resolution
        return giving(self.base, self.controls, conditions, (how.height or side, how.width or side), how, until)

    def vectors(self) -> dict[str, list[Tensor]]:
        """Each new token's vectors n D, one tensor a text encoder."""
        found: dict[str, list[Tensor]] = {}
        for part, encoder in zip(self.base.text_parts, self.base.text_encoders, strict=True):
            tokenizer = self.base.part(part.replace("text_encoder", "tokenizer"))
            embed_tokens = encoder.get_input_embeddings()
            for token, count in self.tokens.items():
                first = tokenizer.convert_tokens_to_ids(token)
                ids = torch.arange(first, first + count, device=next(encoder.parameters()).device)
                found.setdefault(token, []).append(embed_tokens(ids).detach().float().cpu().clone())
        return found


def open_run(path: Path) -> Run:
    """Loads a run folder (`peft_core.load_run`).

    Raises:
        PeftError: no run folder, or one without an adapter yet.
    """
    return combine([(str(path), 1.0)])


def combine(
    adapters: Sequence[tuple[str, float | str]],
    base: str | None = None,
    dtype: str = "float32",
    allow_pickle: bool = False,
    partial: bool = False,
    offload: str = "none",
) -> Run:
    """Several adapters on one base, each with its scale: run folders, LoRA files, embedding files.

    Args:
        adapters: (path, scale), of an embedding file (path, token) too.
        base: by default that of the first run.
        allow_pickle: read pickles with torch's weights-only loader.
        partial: go without those parts of LoRA files that find no place.
        offload: none, or blocks: the denoiser's weights stay on disk.

    Raises:
        PeftError: no base, an adapter of another base or program, adapters that both overwrite stock weights.
    """
    folders = [Path(path).expanduser() for path, _ in adapters]
    for folder in folders:
        check_there(folder)
    configs = [config_of(folder) if folder.is_dir() else None for folder in folders]
    named = base or next((config["base"] for config in configs if config), None)
    if named is None:
        raise PeftError("which base? Name it with --base, as none of these adapters is a run folder.")
    check_precision(dtype, drawing_device())
    run = Run(load_base(named, dtype, offload))
    check_offload(run.base, drawing_device())
    if any(config is not None and is_edit(config) for config in configs):
        run.base.take_sources()
    for folder, config, name, (_, weight) in zip(folders, configs, short_names(folders), adapters, strict=True):
        has_scale = True
        if config is None:
            has_scale = add_file(run.base, run.tokens, folder, name, weight, allow_pickle, partial)
            run.names[name] = {}
        elif isinstance(weight, str):
            raise PeftError(f"{folder} is a run, whose scale is a number, not {weight}.")
        else:
            run.clip_skip, run.frames = config["clip_skip"], config.get("frames") or 1
            run.names[name] = add_run(run.base, run.tokens, folder, name)
            if config.get("control") is not None:
                from diffusion_peft.control.use import uses_of

                run.controls += uses_of(run.base, config, f"{name}__")
        if has_scale and weight != 1.0:
            run.set_scale(float(weight), name)
    skips = {config["clip_skip"] for config in configs if config}
    if len(skips) > 1:
        tell(f"note: these runs were trained with different --clip_skip; pictures are drawn with {run.clip_skip}")
    return run
