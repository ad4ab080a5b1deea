"""One training run, top to bottom: base, pictures, caches, adapters, Lightning, figures."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_peft.base.bases import Base, load_base
from diffusion_peft.base.prompt_syntax import notes_on
from diffusion_peft.base.texts import check_length, fix_pooling
from diffusion_peft.commands.task import task_of
from diffusion_peft.data.concepts import Concept, NewToken, add_tokens
from diffusion_peft.data.examples import BucketBatches
from diffusion_peft.data.prepare import resolution
from diffusion_peft.drawing.draw import check_clip_skip, check_drawing
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.noise import alphas_of
from diffusion_peft.training.results import write_outcome
from diffusion_peft.training.snapshots import SNAPSHOTS, Snapshots
from peft_core import adapt, count_parameters, save_adapter
from peft_core.anatomies import anatomy_of
from peft_core.attach import pick
from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.learning import load_bitsandbytes
from peft_core.jobs.runs.outcome import measured
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.training import (
    CHECKPOINT,
    Progress,
    SaveState,
    make_trainer,
    planned_steps,
    quiet,
    seed_everything,
)
from peft_core.method import Method

OF_DENOISER = ("optimizer", "lr", "text_lr", "weight_decay", "warmup", "final_lr", "prior_weight", "snr_gamma",
               "noise_offset", "ema", "clip_skip", "seed")  # fmt: skip
FEWEST_STEPS = 100
"""Optimiser steps an epoch at least: a few pictures are passed over several times."""


def run(folder: RunFolder, concepts: list[Concept], settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Trains (or goes on training) as `settings` say and writes everything into the folder.

    Returns: the results; {} on processes other than the first.
    """
    began = time.monotonic()
    if settings["optimizer"] == "adamw8bit":
        load_bitsandbytes()
    base = load_base(settings["base"], settings["dtype"])
    check_clip_skip(base, settings["clip_skip"])
    task = task_of(settings)
    samples = task.samples(folder.path)
    saver = SaveState(folder.path, settings["save_every"], lambda: save(denoiser, folder.path / "adapter", card))
    flags = trainer_flags(settings)
    snapshots = Snapshots(settings["keep_every"], lambda step: keep(step))
    trainer = make_trainer(flags, [samples, saver, snapshots, Progress()], folder.path)
    each, rest = divmod(settings["batch_size"], trainer.world_size)
    if rest:
        raise PeftError(f"a batch of {settings['batch_size']} does not divide among {trainer.world_size} devices.")
    device = trainer.strategy.root_device

    tokens = add_tokens(base, concepts, settings["vectors"])
    prompts = settings["sample_prompts"] or []
    for prompt in prompts:
        check_length(base, prompt, "a sample prompt")
    for note in notes_on(prompts):
        tell(f"note: {note}")
    resolution(base, settings["resolution"])
    check_drawing(base, samples.how)
    trains_text = bool(tokens or settings["text_method"])
    examples, about = task.prepare(base, concepts, device, trains_text, samples)
    samples.embed(base, prompts or about["prompts"], trains_text, device)
    base.free("vae", *(() if trains_text else base.text_parts))

    unet, texts = models(base, settings, task.method(base), tokens, trains_text)
    repeats = max(1, -(-FEWEST_STEPS * trainer.accumulate_grad_batches * settings["batch_size"] // len(examples)))
    batches = BucketBatches(
        examples, each, seed=settings["seed"], repeats=repeats, rank=trainer.global_rank, world_size=trainer.world_size
    )
    chosen = {key: settings[key] for key in OF_DENOISER} | task.options()
    if trainer.fit_loop.max_epochs in (None, -1):
        trainer.fit_loop.max_epochs = -(-settings["steps"] // -(-len(batches) // trainer.accumulate_grad_batches))
    denoiser = task.module(
        unet, texts, alphas_of(base.config("scheduler")), planned_steps(trainer, len(batches)),
        prediction_type=base.prediction_type, latent_scale=base.config("vae").get("scaling_factor", 0.18215), **chosen,
    )  # fmt: skip
    if settings["compile"]:
        unet.compile()
    card = {"command": folder.program, "base": base.name, "kind": base.kind, "clip_skip": settings["clip_skip"]}
    card["tokens"] = {token.name: token.vectors for token in tokens}
    folder.begin(config, settings["overwrite"])  # only now: a mistake in the settings leaves no folder behind

    def keep(step: int) -> None:
        """A run folder of its own, its config first and its results last."""
        place = folder.path / SNAPSHOTS / f"step{step}"
        kept = RunFolder(str(place), folder.program)
        kept.begin(config | {"steps": step, "keep_every": 0, "out": str(place)})
        save(denoiser, place / "adapter", card)
        denoiser.seconds = denoiser.trained_for()
        results = results_of(settings, base, concepts, examples, denoiser, kept, preparing)
        kept.write_results(measured(results | {"tokens": card["tokens"]}))

    checkpoint = folder.path / CHECKPOINT
    preparing = time.monotonic() - began
    with quiet():
        trainer.fit(denoiser, batches, ckpt_path=checkpoint if checkpoint.is_file() else None)
        denoiser.finish()
    if not trainer.is_global_zero:
        return {}
    saver.after_epoch()
    denoiser.to(device)  # Lightning leaves it on the processor
    results = results_of(settings, base, concepts, examples, denoiser, folder, preparing) | {"tokens": card["tokens"]}
    with denoiser.averaged():
        return write_outcome(folder, results, denoiser, samples, about["shown"], task)


def results_of(
    settings: dict[str, Any],
    base: Base,
    concepts: list[Concept],
    examples: Any,
    denoiser: Denoiser,
    folder: RunFolder,
    preparing: float,
) -> dict[str, Any]:
    """What a run came to so far: its settings in short, its loss, sizes and times."""
    counts = {path.removeprefix("texts."): count_parameters(model) for path, model in denoiser.adapted().items()}
    losses = [row["loss"] for row in denoiser.history][-max(1, len(denoiser.history) // 10) :]
    return {
        "loss": sum(losses) / max(1, len(losses)),
        "steps": denoiser.trainer.global_step,
        "base": base.name,
        "kind": base.kind,
        "prediction_type": base.prediction_type,
        "data": [concept.data for concept in concepts]
        or [settings["slider"].options.get("positive") or settings["data"]],
        "pictures": {"train": len(examples), "prior": sum(map(len, getattr(examples, "prior", ())))},
        "method": settings["method"].plain(),
        "text_method": settings["text_method"].plain() if settings["text_method"] else None,
        "seed": settings["seed"],
        "parameters": {"inserted": sum(c.inserted for c in counts.values())}
        | {part: dataclasses.asdict(count) for part, count in counts.items()},
        "adapter_bytes": sum(f.stat().st_size for f in (folder.path / "adapter").rglob("*.safetensors")),
        "seconds": {"prepare": preparing, "train": denoiser.seconds},
    }


def trainer_flags(settings: dict[str, Any]) -> dict[str, Any]:
    """Lightning's flags: the steps, and autocast where the frozen weights are in half precision."""
    precision = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}.get(settings["dtype"])
    flags = {"max_steps": settings["steps"]} | ({"precision": precision} if precision else {})
    return flags | settings["trainer"].options


def models(
    base: Base, settings: dict[str, Any], method: Method, tokens: list[NewToken], trains_text: bool
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The adapted UNet, and the text encoders where they train, at step 0."""
    seed_everything(settings["seed"], verbose=False)
    unet = base.part("unet")
    if settings["method"].name != "textual_inversion":
        adapt(unet, method).train()
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
    for model in (unet, *texts.values()):
        half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
        if half:
            raise PeftError(
                f"{settings['method'].name} trains stock weights ({half[0]} …), which in {settings['dtype']} would learn "
                "nothing: use --dtype float32 with --trainer.precision bf16-mixed."
            )
    if settings["slider"].options and any(a.trained for a in pick(unet, None)):
        raise PeftError(
            f"a slider needs a method whose change has a scale, and {settings['method'].name} overwrites weights."
        )
    return unet, texts


def install_tokens(encoder: nn.Module, tokenizer: Any, tokens: list[NewToken], number: int) -> None:
    """The new tokens' vectors, of all tokens together, in text encoder `number`."""
    fix_pooling(encoder, tokenizer)
    initial = [i for token in tokens for i in token.initial[number]]
    adapt(encoder, "textual_inversion", name="tokens", first=tokens[0].firsts[number], initial=initial)


def used_blocks(method: Method, encoder: nn.Module, part: str, base: Base, clip_skip: int) -> Method:
    """The method kept away from layers whose output nobody reads: SDXL's first encoder stops before its last layer."""
    unused = clip_skip + 1 if (base.kind, part) == ("sdxl", "text_encoder") else clip_skip if base.kind != "sdxl" else 0
    if not unused or method.blocks is not None:
        return method
    depth = len(anatomy_of(encoder).blocks[None])
    return dataclasses.replace(method, blocks=range(depth - unused))


def save(denoiser: Denoiser, folder: Path, card: dict[str, Any]) -> None:
    """Writes the adapters, one folder a part of the pipeline."""
    with denoiser.averaged():
        for path, model in denoiser.adapted().items():
            save_adapter(model, folder / path.removeprefix("texts."), part=path.removeprefix("texts."), **card)
