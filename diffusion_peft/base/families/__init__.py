"""What a base is: one file a family, found by the name of its pipeline.

A family says which parts it has, what of their configurations is known, how pictures become latents, how its text encoders
say a prompt, what its denoiser (a UNet, a diffusion transformer) is told and predicts, and what its pipeline is called with.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_peft.base.prompts import Prompt
from peft_core.errors import PeftError

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base
    from peft_core.method import Method

AUTOENCODER = (
    "sample_size block_out_channels layers_per_block down_block_types up_block_types act_fn latent_channels "
    "norm_num_groups scaling_factor force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention"
).split()
"""Settings of an `AutoencoderKL` that may have any value, since its class acts on them by itself."""
CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection"), ("CLIPTokenizer", "CLIPTokenizerFast")
T5 = ("T5EncoderModel",), ("T5Tokenizer", "T5TokenizerFast")


class Family:
    """A family of bases; stateless, one instance each."""

    kind: ClassVar[str]
    title: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    editor: ClassVar[str | None] = None
    """That of its pipelines which draws from a source picture too."""
    usual_drop: ClassVar[float] = 0.0
    """Of editing: the share of pictures that are trained without their source, or instruction, or both, of each as many."""
    films: ClassVar[bool] = False
    """Whether it draws films; one frame is a picture."""
    denoiser: ClassVar[str] = "transformer"
    """The part that is adapted."""
    texts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Its text encoders; a tokenizer goes with each."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those that a folder may say it goes without."""
    classes: ClassVar[Mapping[str, tuple[str, ...]]]
    """Part -> the classes of it that are known."""
    shapes: ClassVar[Mapping[str, Sequence[str] | None]]
    """Part -> settings that may have any value; of the others only the class's default is known. None: all of its class's may,
    but for `fixed`."""
    fixed: ClassVar[Mapping[str, Sequence[str]]] = {}
    flows: ClassVar[bool] = True
    """Whether it was trained by flow matching, x_t = (1 − σ) x₀ + σ ε; else with a discrete schedule ᾱ_t."""
    trains_texts: ClassVar[bool] = False
    """Whether its text encoders and new tokens can train."""
    reads: ClassVar[tuple[tuple[str, int | None], ...]]
    """(tokenizer, tokens): what must not be longer in a prompt; None as the tokenizer says."""
    usual_guidance: ClassVar[float]
    """Its pipeline's default."""

    marks: ClassVar[str]
    """A regular expression of what only LoRA files for it, or for few others, have in their keys."""

    # ---- what it is --------------------------------------------------------------------------------------------------

    def claims(self, base: Base) -> bool:
        """Whether a base of its pipeline is its own."""
        return True

    def check(self, base: Base) -> None:
        """Raises PeftError: what of a base, besides single settings, training does not know."""
        channels, latent = base.config(self.denoiser)["in_channels"], self.latent_channels(base)
        if channels != latent:
            raise PeftError(
                f"{base.name} is an inpainting or editing model: its {self.denoiser} takes {channels} channels, not {latent}."
            )

    def latent_channels(self, base: Base) -> int:
        """What its denoiser must take to be one from text to picture."""
        return base.config("vae")["latent_channels"]

    def is_distilled(self, base: Base) -> bool:
        """Whether the denoiser is told the scale of its guidance."""
        return bool(base.config(self.denoiser).get("guidance_embeds"))

    def guidance(self, base: Base) -> float:
        """What a base is drawn with."""
        return self.usual_guidance

    def passes(self, base: Base, guidance: float) -> int:
        """How often its pipeline calls the denoiser a step, under guidance of this weight."""
        return 1

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def shrinks(self, base: Base) -> int:
        """Pixels of a picture a latent, along each side."""
        return 2 ** (len(base.config("vae")["block_out_channels"]) - 1)

    def least_side(self, base: Base) -> int:
        """What a picture's sides in pixels must be multiples of."""
        return base.shrinks * self.patch(base)

    def patch(self, base: Base) -> int:
        """Latents a token along each side."""
        return int(base.config(self.denoiser).get("patch_size") or 1)

    def resolution(self, base: Base) -> int:
        """The side in pixels that the base was trained on."""
        return int(base.config(self.denoiser).get("sample_size") or 128) * base.shrinks

    def encode(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of a picture's latents, B C h w before `normal`; −∞ where they are not drawn."""
        posterior = vae.encode(pixels).latent_dist
        return posterior.mean, posterior.logvar

    def normal(self, base: Base) -> tuple[Tensor, Tensor]:
        """(shift, scale), each () or C 1 1: the denoiser's latents are (latent − shift) · scale."""
        config = base.config("vae")
        return torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(config.get("scaling_factor", 0.18215))

    def film_step(self, base: Base) -> int:
        """Frames from one latent to the next, of bases that draw films."""
        return 1

    # ---- editing -----------------------------------------------------------------------------------------------------

    def must_have_source(self, base: Base) -> bool:
        """Whether its denoiser cannot do without a source picture."""
        return False

    def widen(self, base: Base, denoiser: Any) -> None:
        """Makes room for a source picture in the denoiser of an editing base, which then does what it did before."""

    def besides(self, base: Base, denoiser: Any) -> Sequence[Method]:
        """What of an adapted denoiser trains besides, for the source to be read."""
        return ()

    def source(self, base: Base, mean: Tensor) -> Tensor:
        """A source's latents as the denoiser is told them, from their posterior's mean."""
        shift, scale = self.normal(base)
        return (mean - shift.to(mean)) * scale.to(mean)

    def edited(self, source: Tensor | None, guidance: float | None, height: int, width: int) -> dict[str, Any]:
        """What the editing pipeline is called with besides `called`.

        Args:
            source: B C h w, as `source` gives it.
            guidance: weight of the source, of pipelines that have one.
        """
        return {}

    # ---- words and the denoiser --------------------------------------------------------------------------------------

    def prompt(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        """A text as the stock pipeline encodes it; `encoders` stand in for the base's own."""
        for encoder in base.text_encoders:
            encoder.to(device)
        return self.said(base.text_pipeline(), text, device)

    def against(
        self, base: Base, text: str, device: torch.device, clip_skip: int = 0, encoders: Sequence[Any] | None = None
    ) -> Prompt:
        """A negative prompt."""
        return self.prompt(base, text, device, clip_skip, encoders)

    def said(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        """`prompt`, by a pipeline that has text encoders and tokenizers alone."""
        raise NotImplementedError

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, guidance: float | None, hidden: Tensor, **words: Tensor
    ) -> Tensor:
        """What the denoiser says of x_t, B C h w: ε − x₀ at σ = `time` of a flow, else ε or v at `time`."""
        raise NotImplementedError

    def called(self, base: Base, wanted: Prompt, against: Prompt, guidance: float) -> dict[str, Any]:
        """The stock pipeline's arguments for prompts in a batch and as many negative ones."""
        given: dict[str, Any] = {
            "prompt_embeds": wanted.hidden, "negative_prompt_embeds": against.hidden, "guidance_scale": guidance,
        }  # fmt: skip
        if against.pooled is not None:
            given |= {"pooled_prompt_embeds": wanted.pooled, "negative_pooled_prompt_embeds": against.pooled}
        return given

    def original(self, model: nn.Module) -> tuple[dict[str, str | tuple[str, ...]], Sequence[str]]:
        """The authors' names of a denoiser's modules, each with diffusers' path or with paths that are its rows, and the paths
        whose halves the authors have the other way round; nothing where LoRA files do not use such names."""
        return {}, ()


def told(guidance: float | None, x: Tensor) -> Tensor | None:
    """The scale that a guidance-distilled denoiser is told, one a picture."""
    return None if guidance is None else torch.full((len(x),), guidance, device=x.device, dtype=torch.float32)


def with_masks(wanted: Prompt, against: Prompt) -> dict[str, Any]:
    """What pipelines that take the masks of words want besides."""
    return {
        "prompt_attention_mask": wanted.mask, "negative_prompt_attention_mask": against.mask, "negative_prompt": None,
    }  # fmt: skip


def masked(prompt: Prompt) -> list[Tensor]:
    """Each prompt's words without its padding, l D."""
    if prompt.mask is None:
        return list(prompt.hidden)
    return [hidden[mask.bool()] for hidden, mask in zip(prompt.hidden, prompt.mask, strict=True)]


@functools.cache
def families() -> tuple[Family, ...]:
    """All of them."""
    found = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        own = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Family)]
        found += [each() for each in own if each.__module__ == module.__name__ and "kind" in vars(each)]
    return tuple(found)


def titles() -> dict[str, str]:
    """Kind -> what it is called."""
    return {family.kind: family.title for family in families()}


def of_kind(kind: str) -> Family:
    return next(family for family in families() if family.kind == kind)


def family_of(denoiser: nn.Module) -> Family | None:
    """The family that has such a denoiser, told by its class alone."""
    names = {cls.__name__ for cls in type(denoiser).__mro__}
    return next((each for each in families() if names & {*each.classes[each.denoiser]}), None)


def kind_of(denoiser: nn.Module) -> str | None:
    """The kind of that family; UNets are all told as the first of theirs."""
    family = family_of(denoiser)
    return None if family is None else family.kind


def part_of(denoiser: nn.Module) -> str:
    """What a denoiser is called in a pipeline."""
    family = family_of(denoiser)
    return "unet" if family is None else family.denoiser


def likely(keys: Iterable[str]) -> list[str]:
    """Which families a LoRA file with these keys may be for, by name."""
    text = "\n".join(keys)
    return [family.title for family in families() if re.search(family.marks, text)]
