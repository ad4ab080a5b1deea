"""One run, top to bottom: data, model, cached features, Lightning, figures."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft_data import ClassificationData
from peft_data.cache import DecodedPictures
from peft_data.frames import FramedPictures
from peft_data.video.batches import batches_of

from clip_peft import saved
from clip_peft.learner import OpenVocabularyMethod, grafted
from clip_peft.open_vocabulary import NamesReadAlike, OpenVocabulary
from clip_peft.tasks import task_of
from clip_peft.text.prompts import alike, spoken, text_ids
from clip_peft.text.templates import DEFAULT, TEMPLATES
from clip_peft.training.choosing import choose, each_left_out
from clip_peft.training.contrast import Contrast
from clip_peft.training.evaluate import test_augment, test_views
from clip_peft.training.features import Encoder, Views, default_cache, frozen_image_tower
from clip_peft.training.telling import Watch, backbone_words, next_commands, results_method, seldom
from peft_core import count_parameters
from peft_core.errors import PeftError
from peft_core.jobs.data import left_out
from peft_core.jobs.hub.open_clip_models import load_backbone, picture_fit
from peft_core.jobs.hub.precision import in_few_bits
from peft_core.jobs.hub.references import REFERENCE
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.runs import outcome, training
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.progress import Progress
from peft_core.jobs.runs.rates import find_rate
from peft_core.jobs.runs.saying import few, waiting
from peft_core.jobs.runs.training import SaveState, among_devices, make_trainer, planned_steps
from peft_core.method import Method
from peft_core.registry import make_method

OF_CONTRAST = (
    "augment",
    "optimizer",
    "lr",
    "weight_decay",
    "warmup_epochs",
    "warmup_lr",
    "final_lr",
    "stepwise",
    "seed",
)


def run(
    folder: RunFolder,
    data: ClassificationData,
    settings: dict[str, Any],
    config: dict[str, Any],
    load: Callable[..., Any] = load_backbone,
) -> dict[str, Any]:
    """Trains (or goes on training) as `settings` say and writes everything into the folder.

    Args:
        data: what is trained and scored on, drawn already.
        load: gives the backbone.

    Returns: the results; {} on processes other than the first.
    """
    card: dict[str, Any] = {"command": folder.program}

    def keep() -> None:
        saved.save(whole, folder.path / "adapter", **card)

    saver = SaveState(folder.path, settings["save_every"], seldom(keep))
    count = settings["batch_size"] if settings["batch_size"] <= len(data.train) else len(data.train)
    training.seed_everything(settings["seed"], verbose=False)
    model, tokenizer, about = load(settings["backbone"])
    method, options = resolved(settings["method"].build(), settings["template"], data.name)
    method = method.for_run(about.mean, about.std, len(data.class_names))
    model = in_few_bits(model, settings, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NamesReadAlike)  # among the notes
        whole = OpenVocabulary(model, method, data.class_names, tokenizer, memory=settings["text_memory"], **options)
    task = task_of(method)(data.class_names)
    told = [*notes_on_names(whole, settings["backbone"]), *task.notes(data)]
    for note in told:
        tell(f"note: {note}")
    bf16 = wants_bf16(settings["precision"], whole)
    flags = {"max_epochs": planned_epochs(settings, len(data.train), len(data.class_names))}
    flags |= {"precision": "bf16-mixed"} if bf16 else {}
    watch = Watch()
    trainer = make_trainer(flags | settings["trainer"].options, [watch, saver, Progress()], folder.path)
    each, share = among_devices(trainer, count)

    whole.to(trainer.strategy.root_device)
    fit = picture_fit(model, about)
    if side := getattr(method, "side", None):
        fit = dataclasses.replace(fit, size=(side, side))
    card |= about.card() | {"resize": fit.mode, "interpolation": fit.interpolation, "input_size": fit.size}
    train = settings["data"].decode(data.train, fit.size, settings["augment"], **fit.how)
    tested = test_augment(method)
    val, scored = (
        settings["data"].decode(part, fit.size, augment, **fit.how) if len(part) else None
        for part, augment in ((data.val, "none"), (data.val if settings["eval_on"] == "val" else data.test, tested))
    )
    cache = Path(settings["data"].options.get("cache_dir") or default_cache()) if settings["cache_views"] else None
    encoder = Encoder(whole, about.mean, about.std, cache)
    found, by_leaving = {}, True
    began = time.monotonic()
    with waiting(f"computing image features of {len(train):,} pictures"):
        views = training_views(encoder, train, settings)
    learner: Any = whole.learner
    if hasattr(learner, "remember"):  # a cache of the training pictures
        kept, labels = torch.stack(views or encoder.views(train, [None])).to(encoder.device), train.labels
        learner.remember(kept, labels)
        if by_leaving := settings["choose_on"] == "train" or not val:
            parts = each_left_out(learner, kept, labels.to(encoder.device))
            found = choose(whole, parts, "the training pictures, each left out in turn")
    caching = time.monotonic() - began
    contrast, epochs, steps, rates = None, 0, 0, None
    if settings["lr"] == "find" and not whole.trainable():
        raise PeftError(f"{method.name} trains nothing, so there is no rate to find: leave --lr find out.")
    if whole.trainable():
        empty = torch.empty(len(train), 0, dtype=torch.uint8)  # features are picked by the rows of a batch
        source = train if views is None else DecodedPictures(empty, train.labels, train.names)
        batches = batches_of(source, each, seed=settings["seed"], drop_last=True, **share)
        chosen: dict[str, Any] = {key: settings[key] for key in OF_CONTRAST} | {
            "augment": source.remaining(settings["augment"])
        }
        steps = planned_steps(trainer, len(batches))
        an_epoch = math.ceil(len(batches) / trainer.accumulate_grad_batches)
        finding = chosen["lr"] == "find"
        chosen |= {"lr": 1e-3} if finding else {}
        contrast = Contrast(encoder, steps, an_epoch, Views(views) if views else None, **chosen)
        if finding:
            again = batches_of(source, each, seed=settings["seed"], drop_last=True, **share)
            rates = find_rate(contrast, again, flags | settings["trainer"].options)
            settings["lr"] = config["lr"] = contrast.lr = rates.rate
        epochs = math.ceil(steps / an_epoch)
        if 0 < epochs <= settings["warmup_epochs"]:
            told.append("this run would be nothing but warm-up (warmup_epochs), so it has none")
            tell(f"note: {told[-1]}")
        if val and folder.found is not None and not test_views(method):
            watch.every = math.ceil(epochs / 10)
            watch.look = lambda: task.on_the_way(encoder, val)
    count = parameters(whole)
    counts = outcome.share_words(count["trainable"], count["total"])
    named = outcome.plan(
        results_method(whole, options), backbone_words(about, fit.size, data), counts, steps, epochs,
        f"{len(train):,} pictures", settings,
    )  # fmt: skip
    tests = (
        f"{settings['eval_on']}, {len(scored):,}, once, at the end; zero-shot beside it"
        if scored
        else "nothing: there are no other pictures"
    )
    folder.begin(
        config, settings["overwrite"], [*named, ("scored on", tests)]
    )  # only now: a mistake in the settings leaves no folder behind
    if rates is not None and trainer.is_global_zero:
        rates.write(folder)
    busy = 1.0  # of the clock's seconds, this process's own
    if contrast is not None:
        began, own = time.monotonic(), time.process_time()
        training.train(trainer, contrast, folder.path, batches)
        if trainer.strategy.root_device.type == "cpu":
            busy = (time.process_time() - own) / (time.monotonic() - began)
        epochs = trainer.current_epoch
        whole.to(trainer.strategy.root_device)
    if not trainer.is_global_zero:
        return {}
    if val and (task.calibrates or not by_leaving):
        found = task.choose(encoder, val) or found
    began = time.monotonic()
    with waiting(f"scoring {len(scored or ()):,} pictures"):
        scores = task.scores(encoder, scored) if scored else None
    kept = whole.method.keeps_originals  # else there is no stock model to go back to
    beside = task.zero_shot(encoder, scored, options.get("template")) if scored and kept else None
    results = {
        task.beside: beside,
        **task.figures(scores, scored),
        "evaluated_on": settings["eval_on"] if scored else None,
        "classes": settings["classes"],
        "shots": settings["shots"],
        "epoch": epochs,
        "seed": settings["seed"],
        "data": data.name,
        "notes": (*data.notes, *told),
        "pictures": {"train": len(train), "scored": len(scored or ())},
        "left_out": left_out(data, {"train": train, "scored": scored}),
        "method": results_method(whole, options),
        "chosen": found,
        "backbone": about.name,
        "checkpoint_family": about.family,
        "normalisation": {"mean": about.mean, "std": about.std},
        "precision": "bf16 autocast in training, float32 parameters" if bf16 else "float32",
        "cached_views": len(views or ()),
        "parameters": parameters(whole),
        "seconds": {"features": caching, "train": contrast.seconds if contrast else 0.0,
                    "evaluate": time.monotonic() - began},
        "train_seconds": busy * contrast.seconds if contrast else 0.0,
        "learns": bool(whole.trainable()) or hasattr(whole.learner, "remember"),
    }  # fmt: skip
    if folder.found is not None:
        history = contrast.history if contrast else []
        results["remarks"] = task.remarks(whole, scores, results, history)
    folder.next = next_commands(folder, outcome.first_picture(getattr(data, settings["eval_on"])), settings["classes"])
    card |= task.card() | {key: results[key] for key in (*task.kept, "evaluated_on", "classes", "shots")}
    keep()
    return task.write(Finished(folder, data, results, contrast.history if contrast else [], scores, scored))


def training_views(
    encoder: Encoder, train: DecodedPictures | FramedPictures, settings: dict[str, Any]
) -> list[torch.Tensor] | None:
    """Features of the training pictures, None where each step encodes them."""
    if not settings["cache_views"] or not encoder.frozen or not (
        encoder.whole.trainable() or hasattr(encoder.whole.learner, "remember")
    ):  # fmt: skip
        return None
    count = 1 if settings["augment"] == "none" else settings["cache_views"]
    return encoder.views(train, range(count), settings["augment"], settings["seed"])


def resolved(method: Method, template: str | None, data: str) -> tuple[Method, dict[str, Any]]:
    """The method with its texts' template, or the template apart for a method that grafts: what was asked for, else the
    data set's customary one where the method has the plain one."""
    if template is not None and not template.strip():
        raise PeftError("--template is empty: write the text, with {} where the class name goes, or leave it out.")
    if not isinstance(method, OpenVocabularyMethod):
        return method, {"template": template or DEFAULT}
    of = data.rpartition("/")[2] if data.startswith("coop/") else ""
    method = method.for_data(of)
    customary = method.customary.get(of) or TEMPLATES.get(of)
    has = getattr(method, "template", None)
    if has is None:
        if template:
            raise PeftError(f"{method.name} learns the words around a class name: leave --template out.")
        return method, {}
    if template or (has == DEFAULT and customary):
        method = make_method(method, template=template or customary)
    return method, {}


def notes_on_names(whole: OpenVocabulary, backbone: str) -> list[str]:
    """What to know of the class names: those that no text tower can tell apart, and words that the model never saw."""
    tokenizer, names = whole.learner.clip.tokenizer, whole.class_names
    notes = [
        f"these class names are the same tokens, so no model can tell them apart: {', '.join(group)}"
        for group in alike(tokenizer, names)
    ]
    if backbone == REFERENCE:
        words = sorted({word for name in names for word in spoken(name).split()})
        strange = [word for word in words if len(text_ids(tokenizer, word)) != 1]
        if strange:
            notes.append(f"the reference CLIP knows the words of the drawn world alone, and not {few(strange, 8)}")
    return notes


def planned_epochs(settings: dict[str, Any], pictures: int, classes: int) -> int:
    if settings["epochs"]:
        return settings["epochs"]
    if settings["steps_per_shot"]:
        an_epoch = max(1, pictures // settings["batch_size"])
        shots = settings["shots"] or math.ceil(pictures / classes)
        return max(1, round(settings["steps_per_shot"] * shots / an_epoch))
    shots = settings["shots"] or 16
    return 50 if shots == 1 or classes > 500 else 100 if shots <= 4 else 200


def wants_bf16(precision: str, whole: OpenVocabulary) -> bool:
    """Whether training autocasts to bfloat16. On a CPU with bf16 units that pays where text towers of 384 or more channels
    train alone (1.3 × at 384, 1.4 × at 512, slower below); elsewhere on a CPU it does not."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    wide = frozen_image_tower(whole) and whole.learner.clip.tower.width >= 384
    return wide and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def parameters(whole: OpenVocabulary) -> dict[str, int]:
    beside, inside = sum(p.numel() for p in whole.learner.parameters()), count_parameters(whole.model)
    inserted = beside + (inside.inserted if grafted(whole.method) else 0)
    trained = sum(p.numel() for p in whole.trainable())
    return {"inserted": inserted, "trainable": trained, "total": beside + inside.total}
