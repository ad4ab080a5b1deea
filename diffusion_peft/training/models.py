"""A base's models adapted for training, at step 0."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from diffusion_peft.base.bases import Base
from diffusion_peft.base.offload import check_frozen
from diffusion_peft.base.texts import fix_pooling
from diffusion_peft.base.tokens import install_words
from diffusion_peft.data.concepts import NewToken
from peft_core.adaptation import adapt
from peft_core.anatomies import anatomy_of
from peft_core.errors import PeftError
from peft_core.jobs.hub.precision import in_few_bits
from peft_core.jobs.runs.training import seed_everything
from peft_core.method import Method


def models(
    base: Base, settings: dict[str, Any], method: Method, tokens: list[NewToken], trains_text: bool
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The adapted denoiser, and the text encoders where they train, at step 0."""
    seed_everything(settings["seed"], verbose=False)
    unet: Any = in_few_bits(base.part(base.denoiser), settings, method)
    if "words" not in method.needs:
        adapt(unet, method).train()
        for each in base.family.besides(base, unet):
            adapt(unet, each)
    if settings["gradient_checkpointing"]:
        unet.enable_gradient_checkpointing()
        unet.train()
    texts = dict(zip(base.text_parts, base.text_encoders, strict=True)) if trains_text else {}
    for number, (part, encoder) in enumerate(texts.items()):
        if tokens:
            install_tokens(encoder, base.tokenizers[number], tokens, number)
        if settings["text_method"]:
            own = used_blocks(settings["text_method"].build(), encoder, part, base, settings["clip_skip"])
            adapt(encoder, own, name=settings["method"].name)  # one name for all parts, by which they are exported
        if settings["gradient_checkpointing"]:
            encoder.gradient_checkpointing_enable()
        encoder.train()
    if base.offload:
        check_frozen(unet, settings["method"].name)
    for model in (unet, *texts.values()):
        half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
        if half:
            raise PeftError(
                f"{settings['method'].name} trains stock weights ({half[0]} …), which in {settings['dtype']} would learn "
                "nothing: use --dtype float32 with --trainer.precision bf16-mixed."
            )
    return unet, texts


def install_tokens(encoder: nn.Module, tokenizer: Any, tokens: list[NewToken], number: int) -> None:
    """The new tokens' vectors, of all tokens together, in text encoder `number`."""
    fix_pooling(encoder, tokenizer)
    initial = [i for token in tokens for i in token.initial[number]]
    install_words(encoder, "tokens", tokens[0].firsts[number], initial)


def used_blocks(method: Method, encoder: nn.Module, part: str, base: Base, clip_skip: int) -> Method:
    """The method kept away from layers whose output nobody reads: SDXL's first encoder stops before its last layer."""
    unused = clip_skip + 1 if (base.kind, part) == ("sdxl", "text_encoder") else clip_skip if base.kind != "sdxl" else 0
    if not unused or method.blocks is not None:
        return method
    depth = len(anatomy_of(encoder).blocks[None])
    return dataclasses.replace(method, blocks=range(depth - unused))
