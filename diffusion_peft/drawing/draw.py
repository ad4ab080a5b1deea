"""Drawing pictures from a pipeline: each picture has its own seed, so it does not depend on how many are drawn at once."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_peft.base.bases import Base
from diffusion_peft.base.prompts import Prompt, batched
from diffusion_peft.drawing.composing import Composition
from peft_core.errors import PeftError

Chunk = range
"""Numbers of the pictures that are drawn at once."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Args:
        steps: denoising steps.
        guidance: weight of the prompt against the negative one; as the base's pipeline has it where None.
        height, width: in pixels; the base's where None.
        at_once: pictures in one batch.
        frames: of a film, of bases that draw them; a picture is a film's frames side by side, which has them as info["film"].
        source_guidance: weight of a source picture, of bases that have one; as their pipeline has it where None.
    """

    steps: int = 30
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    at_once: int = 8
    source_guidance: float | None = None
    frames: int = 1

    def of(self, base: Base) -> Drawing:
        """With the base's own guidance where none is given."""
        return self if self.guidance is not None else replace(self, guidance=base.family.guidance(base))

    def of_a_picture(self) -> tuple[Any, ...]:
        """What a picture drawn from words alone depends on."""
        film = () if self.frames == 1 else (self.frames,)
        return self.steps, self.guidance, self.height, self.width, *film

    def said(self) -> dict[str, Any]:
        """In a table of figures."""
        return {"steps": self.steps, "guidance": "the base's" if self.guidance is None else self.guidance}


def check_drawing(base: Base, how: Drawing) -> None:
    """Raises PeftError: steps, sides, frames or a batch that this base cannot draw."""
    if how.frames > 1 and not base.family.films:
        raise PeftError(f"--frames is for bases that draw films, and {base.name} is {base.family.title}: leave it out.")
    if (how.frames - 1) % (every := base.family.film_step(base)):
        near = (how.frames - 1) // every * every + 1
        raise PeftError(f"{base.name} takes {every} n + 1 frames: try --frames {near}.")
    times = int(base.config("scheduler").get("num_train_timesteps", 1000))
    if not 1 <= how.steps <= times:
        raise PeftError(f"{base.name} is drawn in 1 to {times} steps, not {how.steps}.")
    if how.at_once < 1:
        raise PeftError(f"pictures are drawn 1 or more at once, not {how.at_once}.")
    for name, side in (("height", how.height), ("width", how.width)):
        if side is not None and (side < base.least_side or side % base.least_side):
            near = max(1, round(side / base.least_side)) * base.least_side
            raise PeftError(f"{base.name} draws sides that are multiples of {base.least_side}: try --{name} {near}.")


def drawing_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_precision(dtype: str, device: torch.device) -> None:
    """Raises PeftError: a precision that this device cannot compute a base in."""
    if dtype == "float16" and device.type == "cpu":
        raise PeftError("--dtype float16 needs a GPU: a processor's norms have none; use float32, or bfloat16.")


def check_clip_skip(base: Base, clip_skip: int) -> None:
    """Raises PeftError: more layers left out than a text encoder has; SDXL's stop one before the last anyway."""
    if not clip_skip:
        return
    depth = min(int(base.config(part).get("num_hidden_layers", 12)) for part in base.text_parts)
    most = depth - (2 if base.kind == "sdxl" else 1)
    if clip_skip > most:
        raise PeftError(
            f"--clip_skip {clip_skip} leaves nothing of a text encoder of {depth} layers: {most} at the most."
        )


@torch.no_grad()
def embed(base: Base, text: str, clip_skip: int = 0, encoders: Sequence[nn.Module] | None = None) -> Prompt:
    """A prompt as the base's text encoders (or these in their place) give it."""
    return base.family.prompt(base, text, _device(base, encoders), clip_skip, encoders)


@torch.no_grad()
def embed_negative(
    base: Base, text: str = "", clip_skip: int = 0, encoders: Sequence[nn.Module] | None = None
) -> Prompt:
    """The negative prompt, as the base's pipeline has it."""
    return base.family.against(base, text, _device(base, encoders), clip_skip, encoders)


def _device(base: Base, encoders: Sequence[nn.Module] | None) -> torch.device:
    return next((base.text_encoders if encoders is None else encoders)[0].parameters()).device


@torch.no_grad()
def draw(
    base: Base,
    unet: nn.Module,
    prompts: Sequence[tuple[Prompt, int]],
    negative: Prompt,
    how: Drawing,
    vae: nn.Module | None = None,
    done: Callable[[int, Image.Image], object] = lambda number, image: None,
    before: Callable[[Chunk], object] = lambda chunk: None,
    sources: Sequence[Tensor] = (),
    composition: Composition | None = None,
) -> list[Image.Image]:
    """A picture for each (prompt, seed); `done(number, picture)` is called after each, `before(numbers)` before a batch and,
    with no numbers, at the end. `sources` are the latents of a source picture for each (`Family.source`), or none; `composition`
    says which adapters act when."""
    vae = base.part("vae") if vae is None else vae
    none = {name: None for name in base.index if name.startswith(("text_encoder", "tokenizer"))}
    how = how.of(base)
    composition = composition or Composition(unet, [])
    pipeline = base.pipeline(**{base.denoiser: composition.denoiser}, vae=vae, **none)
    device = next(unet.parameters()).device
    pipeline.vae.to(device)
    pictures: list[Image.Image] = []
    try:
        with _eval_mode(unet), _told_in_its_own_precision(unet, base.edits and base.denoiser == "unet"):
            for start in range(0, len(prompts), how.at_once):
                chunk = prompts[start : start + how.at_once]
                before(range(start, start + len(chunk)))
                source = torch.stack(list(sources[start : start + len(chunk)])) if len(sources) else None
                with composition.drawing(pipeline.scheduler):
                    images = _draw_chunk(base, pipeline, chunk, negative, how, device, source)
                for image in images:
                    done(len(pictures), image)
                    pictures.append(image)
    finally:
        before(range(0))
    return pictures


def calls_of(base: Base, steps: int) -> int:
    """How often the scheduler goes on in so many denoising steps: some take more than one a step."""
    stock = base.part("scheduler")
    if stock.config.get("use_dynamic_shifting"):  # its times wait for the picture's size
        return steps
    scheduler = type(stock).from_config(stock.config)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


def passes_of(base: Base, how: Drawing) -> int:
    """How often the denoiser is called for a picture: some pipelines call it once more a step for guidance."""
    guidance = how.of(base).guidance
    assert guidance is not None
    return calls_of(base, how.steps) * base.family.passes(base, guidance)


def _draw_chunk(
    base: Base, pipeline: Any, chunk: Sequence[tuple[Prompt, int]], negative: Prompt, how: Drawing, device: torch.device,
    source: Tensor | None,
) -> list[Image.Image]:  # fmt: skip
    dtype = getattr(pipeline, base.denoiser).dtype
    wanted = on_device(batched([prompt for prompt, _ in chunk]), device, dtype)
    against = on_device(batched([negative] * len(chunk)), device, dtype)
    assert how.guidance is not None
    call = base.family.called(base, wanted, against, how.guidance) | {
        "num_inference_steps": how.steps, "height": how.height or base.resolution, "width": how.width or base.resolution,
        "generator": [torch.Generator().manual_seed(seed) for _, seed in chunk],
    }  # fmt: skip
    if base.edits:
        given = None if source is None else source.to(device, dtype)
        call |= base.family.edited(given, how.source_guidance, call["height"], call["width"])
        takes = inspect.signature(pipeline.__call__).parameters
        call = {name: value for name, value in call.items() if name in takes}
    if base.family.films:
        with _decoding_in_its_own_precision(pipeline.vae):
            return [as_picture(film) for film in pipeline(**call, num_frames=how.frames, output_type="pil").frames]
    if base.denoiser != "unet":
        with _decoding_in_its_own_precision(pipeline.vae):
            return pipeline(**call, output_type="pil").images
    latents = pipeline(**call, output_type="latent").images
    decoded = [decode(pipeline.vae, latent[None]) for latent in latents]
    return pipeline.image_processor.postprocess(torch.cat(decoded), output_type="pil")


def as_picture(film: Sequence[Image.Image]) -> Image.Image:
    """Its frames side by side."""
    if len(film) == 1:
        return film[0]
    sheet = grid([film])
    sheet.info["film"] = list(film)
    return sheet


@contextmanager
def _told_in_its_own_precision(unet: nn.Module, needed: bool) -> Iterator[None]:
    """SDXL's editing pipeline brings a source to the VAE's precision, and the latents with it."""
    if not needed:
        yield
        return
    hook = unet.register_forward_pre_hook(lambda model, args: (args[0].to(model.dtype), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _decoding_in_its_own_precision(vae: Any) -> Iterator[None]:
    """The VAE stays in float32, and some pipelines hand it latents as their transformer has them."""
    decode = vae.decode
    vae.decode = lambda latents, *rest, **more: decode(latents.to(vae.dtype), *rest, **more)
    try:
        yield
    finally:
        del vae.decode


def on_device(prompt: Prompt, device: torch.device, dtype: torch.dtype) -> Prompt:
    """There, its embeddings in this precision."""
    pooled, mask = prompt.pooled, prompt.mask
    return Prompt(
        prompt.hidden.to(device, dtype), pooled if pooled is None else pooled.to(device, dtype),
        mask if mask is None else mask.to(device),
    )  # fmt: skip


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Pictures B 3 H W, about −1 to 1, in the VAE's own precision (SDXL's gives NaN in float16)."""
    return vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample.float()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def grid(rows: Sequence[Sequence[Image.Image]], gap: int = 2) -> Image.Image:
    """Pictures side by side, a row below the other."""
    width, height = max(p.width for row in rows for p in row), max(p.height for row in rows for p in row)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet


def film_of(image: Image.Image, milliseconds: int = 62) -> bytes | None:
    """A picture's film as an animated WebP without loss, 16 frames a second; None where it has none."""
    frames = image.info.get("film")
    if frames is None:
        return None
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="WEBP", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, lossless=True
    )
    return buffer.getvalue()


def png_of(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
