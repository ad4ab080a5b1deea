"""One training run, top to bottom: base, pictures, caches, adapters, Lightning, figures."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_peft.base.bases import Base, load_base
from diffusion_peft.base.offload import check_offload
from diffusion_peft.base.prompt_syntax import notes_on
from diffusion_peft.base.texts import check_length
from diffusion_peft.data.examples import BucketBatches
from diffusion_peft.data.prepare import resolution
from diffusion_peft.drawing.draw import check_clip_skip, check_drawing, check_precision
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.models import models
from diffusion_peft.training.results import write_outcome
from diffusion_peft.training.samples import Samples
from diffusion_peft.training.snapshots import SNAPSHOTS, Snapshots
from diffusion_peft.training.tasks import Task
from diffusion_peft.training.validation import Validation
from diffusion_peft.training.validation import about as about_validation
from peft_core import count_parameters, save_adapter
from peft_core.jobs.hub.references import only_drawn
from peft_core.jobs.reports.remarks import of_loss
from peft_core.jobs.runs import outcome, training
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.outcome import measured
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.progress import Progress
from peft_core.jobs.runs.saying import Row, waiting
from peft_core.jobs.runs.training import SaveState, among_devices, make_trainer, planned_steps

OF_DENOISER = ("optimizer", "lr", "text_lr", "weight_decay", "warmup", "final_lr", "prior_weight",
               "noise_offset", "ema", "clip_skip", "seed")  # fmt: skip
FEWEST_STEPS = 100
"""Optimiser steps an epoch at least: a few pictures are passed over several times."""


def run(folder: RunFolder, task: Task, config: dict[str, Any]) -> dict[str, Any]:
    """Trains (or goes on training) what the task is about and writes everything into the folder.

    Returns: the results; {} on processes other than the first.
    """
    began = time.monotonic()
    settings = task.settings
    base = load_base(settings["base"], settings["dtype"], settings["offload"])
    task.check_base(base)
    check_clip_skip(base, settings["clip_skip"])
    flags = trainer_flags(settings, settings["steps"])
    machine = make_trainer(flags, [])  # read for its device, processes and accumulation, before its end is known
    each, share = among_devices(machine, settings["batch_size"])
    device = machine.strategy.root_device
    check_precision(settings["dtype"], device)
    check_offload(base, device)
    samples = task.samples(folder.path)

    tokens = task.tokens(base)
    prompts = settings["sample_prompts"] or []
    for prompt in prompts:
        check_length(base, prompt, "a sample prompt")
    for note in notes_on(prompts):
        tell(f"note: {note}")
    resolution(base, settings["resolution"])
    check_drawing(base, samples.how)
    trains_text = bool(tokens or settings["text_method"])
    with waiting("preparing pictures and captions"):
        examples, about = task.prepare(base, device, trains_text, samples)
    steps = (
        settings["steps"]
        if not settings["epochs"]
        else settings["epochs"] * -(-len(examples) // settings["batch_size"])
    )
    flags = trainer_flags(settings, steps)
    samples.embed(base, prompts or about["prompts"], trains_text, device)
    normal = base.family.normal(base)
    base.free("vae", *(() if trains_text else base.text_parts))

    unet, texts = models(base, settings, task.method(base), tokens, trains_text)
    task.check({base.denoiser: unet} | texts)
    repeats = max(1, -(-FEWEST_STEPS * machine.accumulate_grad_batches * settings["batch_size"] // len(examples)))
    batches = BucketBatches(examples, each, seed=settings["seed"], repeats=repeats, **share)
    if flags.get("max_epochs") in (None, -1):
        flags["max_epochs"] = -(-steps // -(-len(batches) // machine.accumulate_grad_batches))
    saver = SaveState(folder.path, settings["save_every"], lambda: save(denoiser, folder.path / "adapter", card))
    snapshots = Snapshots(settings["keep_every"], lambda step: keep(step, f"step{step}"))
    held_out = about.get("held_out")
    val_every = settings["val_every"] or max(1, steps // 20)
    validation = Validation(held_out, val_every, settings["patience"], lambda step: keep(step, "best"))
    trainer = make_trainer(flags, [samples, validation, saver, snapshots, Progress()], folder.path)
    chosen = {key: settings[key] for key in OF_DENOISER} | task.options()
    denoiser = task.module(
        unet, texts, task.process(base), planned_steps(trainer, len(batches)), family=base.family, normal=normal,
        told=task.told(base), **chosen,
    )  # fmt: skip
    if settings["compile"]:
        unet.compile()
    card = {"command": folder.program, "base": base.name, "kind": base.kind, "clip_skip": settings["clip_skip"]}
    card["tokens"] = {token.name: token.vectors for token in tokens}
    if settings["sample_every"] is None and folder.found is not None:
        samples.every = max(1, -(-denoiser.steps // 4))
    folder.begin(
        config, settings["overwrite"], words(task, base, examples, denoiser, samples, trainer, validation)
    )  # only now: a mistake in the settings leaves no folder behind

    def keep(step: int, name: str) -> None:
        """A run folder of its own, its config first and its results last."""
        place = folder.path / SNAPSHOTS / name
        kept = RunFolder(str(place), folder.program)
        kept.begin(config | {"steps": step, "keep_every": 0, "out": str(place)}, overwrite=True)
        save(denoiser, place / "adapter", card)
        denoiser.seconds = denoiser.trained_for()
        results = results_of(task, base, examples, denoiser, kept, preparing)
        kept.write_results(measured(results | {"tokens": card["tokens"]}))

    preparing = time.monotonic() - began
    training.train(trainer, denoiser, folder.path, batches)
    if not trainer.is_global_zero:
        return {}
    saver.after_epoch()
    denoiser.to(device)  # Lightning leaves it on the processor
    results = results_of(task, base, examples, denoiser, folder, preparing) | {"tokens": card["tokens"]}
    remarks = []
    if held_out is not None:
        results["validation"], remark = about_validation(denoiser.history, len(held_out), denoiser.steps)
        remarks = [remark]
    if folder.found is not None:
        losses = [row["loss"] for row in denoiser.history if "loss" in row]
        results["remarks"] = [each for each in (of_loss(losses), *remarks) if each]
    folder.next = next_commands(folder, samples.texts, task)
    with denoiser.averaged():
        return write_outcome(folder, results, denoiser, samples, about["shown"], task)


def words(
    task: Task, base: Base, examples: Any, denoiser: Denoiser, samples: Samples, trainer: Any, validation: Validation
) -> list[Row]:
    """What the run is about to do."""
    held_out, val_every = validation.examples, validation.every
    settings, pictures = task.settings, len(examples)
    prior = sum(map(len, getattr(examples, "prior", ())))
    counts = [count_parameters(model) for model in denoiser.adapted().values()]
    trained = outcome.share_words(sum(c.inserted for c in counts), sum(c.total for c in counts))
    passes = denoiser.steps * settings["batch_size"] * trainer.accumulate_grad_batches / max(1, pictures)
    of = (
        f"{passes:.3g} epochs, passes over {pictures:,} picture{'' if pictures == 1 else 's'}"
        if pictures
        else "from prompts alone"
    )
    drawn_on_the_way = f"every {samples.every:,} steps, and " if 0 < samples.every < denoiser.steps else ""
    data = next((data for data in task.data if not str(data).startswith("world/")), "world/")
    side = settings["resolution"] or base.resolution
    name = f"{base.name} ({base.kind}), {side} × {side} pixels{only_drawn(base.name, str(data))}"
    return [
        ("pictures", f"{pictures:,}" + (f", and {prior:,} prior pictures of their class" if prior else "")),
        *(
            []
            if held_out is None
            else [("held out", f"{len(held_out):,}; their loss is looked at every {val_every:,} steps")]
        ),
        *outcome.plan(settings["method"].plain(), name, trained, denoiser.steps, 0, of, settings),
        (
            "samples",
            f"{drawn_on_the_way}at the end: {', '.join(map(repr, samples.texts))}, seeds 0 to {samples.count - 1}"
            if samples.count
            else "none",
        ),
    ]


def next_commands(folder: RunFolder, texts: Sequence[str], task: Task) -> list[str]:
    return task.next_commands(shlex.quote(str(folder.path)), shlex.quote(texts[0]) if texts else "PROMPT")


def results_of(
    task: Task,
    base: Base,
    examples: Any,
    denoiser: Denoiser,
    folder: RunFolder,
    preparing: float,
) -> dict[str, Any]:
    """What a run came to so far: its settings in short, its loss, sizes and times."""
    settings = task.settings
    counts = {part: count_parameters(model) for part, model in denoiser.parts().items()}
    losses = [row["loss"] for row in denoiser.history if "loss" in row]
    losses = losses[-max(1, len(losses) // 10) :]
    return {
        "loss": sum(losses) / max(1, len(losses)),
        "steps": denoiser.trainer.global_step,
        "base": base.name,
        "kind": base.kind,
        "prediction_type": base.prediction_type,
        "data": task.data,
        "pictures": {"train": len(examples), "prior": sum(map(len, getattr(examples, "prior", ())))}
        | ({"masks": masks} if (masks := getattr(examples, "masks", 0)) else {}),
        "method": settings["method"].plain(),
        "text_method": settings["text_method"].plain() if settings["text_method"] else None,
        "seed": settings["seed"],
        "parameters": {"inserted": sum(c.inserted for c in counts.values())}
        | {part: dataclasses.asdict(count) for part, count in counts.items()},
        "adapter_bytes": sum(f.stat().st_size for f in (folder.path / "adapter").rglob("*.safetensors")),
        "seconds": {"prepare": preparing, "train": denoiser.seconds},
    }


def trainer_flags(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Lightning's flags: the steps, and autocast where the frozen weights are in half precision."""
    precision = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}.get(settings["dtype"])
    flags = {"max_steps": steps} | ({"precision": precision} if precision else {})
    return flags | settings["trainer"].options


def save(denoiser: Denoiser, folder: Path, card: dict[str, Any]) -> None:
    """Writes the adapters, one folder a part of the pipeline."""
    with denoiser.averaged():
        for part, model in denoiser.parts().items():
            save_adapter(model, folder / part, part=part, **card)
