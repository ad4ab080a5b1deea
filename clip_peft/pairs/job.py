"""One run on pairs, top to bottom: data, model, training, retrieval before and after, and the way between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft_data.pairs import PairData, Pairs
from peft_data.pictures import Fit
from peft_data.video.batches import batches_of

from clip_peft.frozen import Clip
from clip_peft.pairs.learn import PairLearning
from clip_peft.pairs.measure import Measure, Split, held_out_loss, recall, split_of
from clip_peft.pairs.report import next_commands, write_report
from clip_peft.training.telling import Watch
from peft_core import adapt, count_parameters, save_adapter
from peft_core.adaptation import set_scale
from peft_core.errors import PeftError
from peft_core.jobs.data import Data
from peft_core.jobs.hub.open_clip_models import load_backbone, picture_fit
from peft_core.jobs.hub.precision import in_few_bits
from peft_core.jobs.hub.references import only_drawn
from peft_core.jobs.runs import outcome, training
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.progress import Progress
from peft_core.jobs.runs.saying import waiting
from peft_core.jobs.runs.training import SaveState, among_devices, make_trainer, planned_steps
from peft_core.passes.evaluating import evaluating
from peft_core.registry import make_method

OF_LEARNING = ("loss", "chunk", "augment", "optimizer", "lr", "weight_decay", "warmup", "final_lr", "seed")


def run(folder: RunFolder, data: PairData, settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Trains (or goes on training) as `settings` say and writes everything into the folder.

    Returns: the results; {} on processes other than the first.
    """
    training.seed_everything(settings["seed"], verbose=False)
    model, tokenizer, about = load_backbone(settings["backbone"])
    method = settings["method"].build().for_run(about.mean, about.std, 0)
    model = in_few_bits(model, settings, method).requires_grad_(False).eval()
    clip = Clip(model, tokenizer)
    fit = picture_fit(model, about)

    def decoded(part: Pairs, augment: str = "none") -> Split | None:
        if not len(part):
            return None
        pictures = settings["data"].decode(part.pictures, fit.size, augment, **fit.how)
        return split_of(clip, pictures, part.captions)

    train, val = decoded(data.train, settings["augment"]), decoded(data.val)
    scored = decoded(data.test) or val
    assert train is not None
    notes = train.captions.notes()
    for note in notes:
        tell(f"note: {note}")
    sets = {name: zero_shot_set(name, fit) for name in settings["zero_shot"] or ()}

    saver = SaveState(folder.path, settings["save_every"], lambda: save_adapter(model, folder.path / "adapter", **card))
    card: dict[str, Any] = about.card() | {
        "command": folder.program, "resize": fit.mode, "interpolation": fit.interpolation, "class_names": [],
        "template": settings["template"],
    }  # fmt: skip
    watch = Watch()
    flags = {"max_epochs": settings["epochs"]} | ({"precision": "bf16-mixed"} if bf16(settings["precision"]) else {})
    trainer = make_trainer(flags | settings["trainer"].options, [watch, saver, Progress()], folder.path)
    count = min(settings["batch_size"], len(train))
    each, share = among_devices(trainer, count - count % trainer.world_size)
    model.to(trainer.strategy.root_device)
    measure = Measure(clip, about.mean, about.std)

    def figures() -> dict[str, Any]:
        with evaluating(model):
            found = {
                name: measure.zero_shot(pictures, names, settings["template"])
                for name, (pictures, names) in sets.items()
            }
            return {"retrieval": recall(*measure.features(scored), scored.own) if scored else None, "zero_shot": found}

    with waiting("scoring the stock model"):
        before = figures() if trainer.is_global_zero else {}
    adapt(model, method)
    if settings["train_scale"]:
        adapt(model, make_method("logit_scale"))
    batches = batches_of(train.pictures, each, seed=settings["seed"], drop_last=True, **share)
    steps = planned_steps(trainer, len(batches))
    rates = tuple(settings[f"{tower}_lr"] or settings["lr"] for tower in ("image", "text"))
    chosen = {key: settings[key] for key in OF_LEARNING} | {"augment": train.pictures.remaining(settings["augment"])}
    learning = PairLearning(clip, train, (about.mean, about.std), steps, rates=rates, **chosen)  # type: ignore[arg-type]
    if val is not None:
        watch.every = max(1, round((trainer.max_epochs or 1) / 10))
        watch.look = lambda: look(learning, measure, val, count)
    count_of = count_parameters(model)
    numbers = {key: getattr(count_of, key) for key in ("inserted", "trainable", "total")}
    named_method = {"name": method.name} | settings["method"].options
    named = outcome.plan(
        named_method, f"{about.name}, {fit.size[0]} × {fit.size[1]} pixels{only_drawn(about.name, data.name)}",
        outcome.share_words(numbers["trainable"], numbers["total"]), steps, settings["epochs"], f"{len(train):,} pairs",
        settings | {"batch_size": count},
    )  # fmt: skip
    at_once = (
        f"{settings['chunk']} at a time, against all {count}"
        if 0 < settings["chunk"] < count
        else f"each against {count}"
    )
    scored_on = ("test" if len(data.test) else "val") if scored else None
    tested = f"{len(scored):,} pairs of {scored_on}, before and after" if scored else "nothing"
    folder.begin(
        config, settings["overwrite"], [*named, ("loss", f"{settings['loss']}, {at_once}"), ("scored on", tested)]
    )
    model.train()
    training.train(trainer, learning, folder.path, batches)
    model.to(trainer.strategy.root_device)
    if not trainer.is_global_zero:
        return {}
    began = time.monotonic()
    with waiting("scoring the trained model"):
        after = figures()
    with waiting("scoring the way between"):
        way = (
            between(model, settings["curve"], before, after, figures) if method.keeps_originals else []
        )  # else no way leads back
    results = {
        "before": before, "after": after, "curve": way, "evaluated_on": scored_on,
        "epoch": trainer.current_epoch, "seed": settings["seed"], "data": data.name, "notes": (*data.notes, *notes),
        "pictures": {"train": len(train), "scored": len(scored) if scored else 0},
        "left_out": {"unreadable": dict(train.pictures.left_out), "captions_cut": train.captions.cut},
        "method": named_method, "loss": settings["loss"], "batch": count,
        "backbone": about.name, "checkpoint_family": about.family, "normalisation": {"mean": about.mean, "std": about.std},
        "logit_scale": clip.scale.item(), "parameters": numbers,
        "seconds": {"train": learning.seconds, "evaluate": time.monotonic() - began},
    }  # fmt: skip
    folder.next = next_commands(folder, data, Path(settings["data"].name))
    saver.after_epoch()
    return write_report(folder, results, learning.history)


def zero_shot_set(name: str, fit: Fit) -> tuple[Any, Sequence[str]]:
    """Decoded test pictures and class names of a data set of classes."""
    chosen = Data(name).absolute()
    opened = chosen.open()
    if not len(opened.test):
        raise PeftError(f"{name} has no test pictures to look at zero-shot: name another in --zero_shot.")
    return chosen.decode(opened.test, fit.size, **fit.how), opened.class_names


def between(model: Any, steps: int, before: Any, after: Any, figures: Any) -> list[dict[str, Any]]:
    """The figures of θ₀ + α (θ₁ − θ₀) from α 0 to 1: Wortsman et al., "Robust Fine-tuning of Zero-shot Models", CVPR 2022.

    A method whose effect is there or not has its two ends alone.
    """
    rows = [{"scale": 0.0} | before]
    try:
        for step in range(1, steps):
            set_scale(model, step / steps)
            rows.append({"scale": step / steps} | figures())
    except PeftError:
        rows = rows[:1]
    finally:
        set_scale(model, 1.0)
    return [*rows, {"scale": 1.0} | after] if steps else []


def look(learning: PairLearning, measure: Measure, val: Split, batch: int) -> dict[str, float]:
    def loss(images: torch.Tensor, texts: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        same = captions[:, None] == captions[None]
        return learning.loss_of(images, texts, same.to(images.device)).detach()

    with torch.no_grad():
        images, texts = measure.features(val)
        return {"val_loss": held_out_loss(images, texts, val.own, batch, loss)} | recall(images, texts, val.own)


def bf16(precision: str) -> bool:
    if precision != "auto":
        return precision == "bf16"
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
