"""One training run, top to bottom: data, model, Lightning, figures."""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

from peft_data import ClassificationData
from peft_data.base import Pictures
from peft_data.batches import Batch, Batches
from peft_data.video.batches import batches_of
from torch import nn

from peft_core import adapt, count_parameters, save_adapter
from peft_core.errors import PeftError
from peft_core.jobs.data import left_out
from peft_core.jobs.hub.backbone import Backbone
from peft_core.jobs.hub.precision import in_few_bits
from peft_core.jobs.hub.references import only_drawn
from peft_core.jobs.reports.classified import Finished
from peft_core.jobs.runs import outcome, training
from peft_core.jobs.runs.folder import RunFolder
from peft_core.jobs.runs.progress import Progress
from peft_core.jobs.runs.rates import find_rate
from peft_core.jobs.runs.saying import waiting
from peft_core.jobs.runs.training import SaveState, among_devices, make_trainer, planned_steps
from peft_core.method import Method
from vision_peft.backbones import load_backbone
from vision_peft.classify import Classifier
from vision_peft.prefix_cache import prefix_cache
from vision_peft.tasks import kind_of
from vision_peft.tasks.base import Task
from vision_peft.video.classified import about_clips, suited

NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
OF_CLASSIFIER = ("optimizer", "lr", "weight_decay", "warmup", "final_lr", "augment", "seed")


def run(
    folder: RunFolder,
    data: ClassificationData,
    settings: dict[str, Any],
    config: dict[str, Any],
    load: Callable[..., tuple[nn.Module, Backbone]] = load_backbone,
    finish: Callable[..., dict[str, Any]] | None = None,
    learner: Callable[..., Classifier] = Classifier,
    watch: bool = True,
) -> dict[str, Any]:
    """Trains (or goes on training) as `settings` say and writes everything into the folder.

    Args:
        load: gives the backbone; a sweep keeps it from run to run.
        finish: writes the outcome, by default the task's way; a sweep leaves out what only a single run needs.
        learner: makes the LightningModule, from what `Classifier` takes.
        watch: score val ten times while training, where that is what is scored at the end; a sweep has no time for it.

    Returns: the results; {} on processes other than the first.
    """
    protocol, task = settings["protocol"], kind_of(data.task).of(data, settings)
    card: dict[str, Any] = {"command": folder.program, "class_names": data.class_names, "resize": settings["resize"]}
    card |= task.card()
    saver = SaveState(folder.path, settings["save_every"], lambda: save_adapter(model, folder.path / "adapter", **card))
    flags = settings["trainer"].options | ({"max_epochs": settings["epochs"]} if settings["epochs"] else {})
    train, scored, scored_name = splits(data, settings["eval_on"], protocol, task.calibrates)
    every = settings["eval_every"] or (1 if protocol == "legacy" else 0)
    if not every and watch and scored_name == "val":
        every = math.ceil(max(0, flags.get("max_epochs") or 0) / 10)
    trainer = make_trainer(flags, [saver, Progress()], folder.path, check_val_every_n_epoch=every or 1)
    each, share = among_devices(trainer, settings["batch_size"])

    model, about = prepare(data, settings, load, task)
    card |= about.card() | about_clips(data.train, settings)
    fit = {"mode": settings["resize"], "crop_pct": about.crop_pct}
    pictures = settings["data"].decode(train, about.input_size, settings["augment"], **fit)
    held_out = task.ready(settings["data"].decode(scored, about.input_size, **fit), data) if len(scored) else None
    pictures = task.ready(pictures, data)
    batches = batches_of(pictures, each, seed=settings["seed"], **share)
    batches.draw = task.draw(pictures.labels, settings["seed"])
    scoring = InOrder(batches_of(held_out, 2 * each, shuffle=False, **share)) if held_out is not None else None
    choosing = None
    if task.calibrates and scored_name == "test" and len(data.val):
        on_val = task.ready(settings["data"].decode(data.val, about.input_size, **fit), data)
        choosing = InOrder(batches_of(on_val, 2 * each, shuffle=False, **share))

    chosen = {key: settings[key] for key in OF_CLASSIFIER} | {"augment": pictures.remaining(settings["augment"])}
    finding = chosen["lr"] == "find"
    chosen |= {"lr": 1e-3} if finding else {}
    own = settings.get(settings["optimizer"])
    chosen["optimizer_settings"] = own.options if own else {}
    classifier = learner(
        model, task, planned_steps(trainer, len(batches)), about.mean, about.std,
        keep_best=protocol == "legacy", **chosen,
    )  # fmt: skip
    if finding:
        rates = find_rate(classifier, batches_of(pictures, each, seed=settings["seed"], **share), flags)
        settings["lr"] = config["lr"] = classifier.lr = rates.rate
    classifier.prefix = prefix_cache(
        model, pictures, about.mean, about.std,
        wanted=settings["cache_prefix"], augment=settings["augment"], compiled=settings["compile"],
    )  # fmt: skip
    if settings["compile"]:
        model.compile()
    classifier.scored_on = scored_name or ""
    count, steps = count_parameters(model), classifier.steps
    epochs = min(max(trainer.max_epochs or 0, 0), -(-steps // -(-len(batches) // trainer.accumulate_grad_batches)))
    about_run = outcome.plan(
        settings["method"].plain(),
        backbone_words(about, count.total, data),
        f"{outcome.share_words(count.inserted + count.head, count.total)}: {count.inserted:,} inserted, {count.head:,} head",
        steps, epochs, f"{len(pictures):,} {train.kind}", settings,
    ) + [("scored on", scored_words(scored_name, len(held_out or ()), protocol, len(data.val), task.calibrates))]  # fmt: skip
    folder.begin(
        config, settings["overwrite"], about_run
    )  # only now: a mistake in the settings leaves no folder behind
    if finding and trainer.is_global_zero:
        rates.write(folder)
    training.train(trainer, classifier, folder.path, batches, scoring if every else None)
    began = time.monotonic()
    for part in (choosing, scoring):
        if part is None:
            continue
        with training.quiet(), waiting(f"scoring {len(part.batches.pictures):,} {train.kind}"):
            trainer.validate(classifier, part, verbose=False)
        if task.calibrates and (part is choosing or scored_name == "val"):
            task.calibrate(classifier.scores)
            card |= task.card()
    if not trainer.is_global_zero:
        return {}
    scores = classifier.scores if scoring is not None else None
    results = {
        **task.figures(scores),
        **({"task": task.name} if task.card() else {}),
        "evaluated_on": scored_name,
        "protocol": protocol,
        "epoch": classifier.best["epoch"] + 1 if protocol == "legacy" else trainer.current_epoch,
        "seed": settings["seed"],
        "data": data.name,
        "pictures": {"train": len(pictures), scored_name or "test": len(held_out or ())},
        "left_out": left_out(data, {"train": pictures, scored_name or "test": held_out}),
        "method": settings["method"].plain(),
        "backbone": about.name,
        **about_clips(data.train, settings),
        "checkpoint_family": about.family,
        "normalisation": {"name": settings["normalise"], "mean": about.mean, "std": about.std},
        "cached_blocks": classifier.prefix.prefix.start if classifier.prefix else 0,
        "parameters": dataclasses.asdict(count_parameters(model)),
        "seconds": {"train": classifier.seconds, "evaluate": time.monotonic() - began},
    }
    known = {"epochs": epochs, "trained": classifier.trained}
    results["remarks"] = task.remarks(scores, classifier.history, **known) if folder.found is not None else []
    picture, method = outcome.first_picture(scored), settings["method"].build()
    folder.next = next_commands(folder, method, picture, task.flags, not task.no_export)
    card |= {key: results[key] for key in (task.score, "protocol", "evaluated_on")}
    saver.after_epoch()
    write = finish or task.write
    return write(Finished(folder, data, results, classifier.history, scores, held_out))


def backbone_words(about: Backbone, total: int, data: ClassificationData) -> str:
    """The backbone in the run's first words; the shipped one says what it does not know."""
    height, width = about.input_size
    return f"{about.name}, {total:,} parameters with all that is added, {height} × {width} pixels" + only_drawn(
        about.name, data.name
    )


def scored_words(name: str | None, count: int, protocol: str, val: int, keeps_val: bool = False) -> str:
    if name is None:
        return "nothing: there are no pictures apart from the training ones"
    if name == "val":
        return f"val, {count:,}: a figure to choose settings by"
    trained = "train + val are trained on; " if val else ""
    trained = "what the task chooses is chosen on val; " if val and keeps_val else trained
    when = "every epoch, the best counts (legacy)" if protocol == "legacy" else "once, at the end"
    return f"test, {count:,}, {when}{f'; {trained[:-2]}' if trained else ''}"


def next_commands(folder: RunFolder, method: Method, picture: str, flags: str = "", exports: bool = True) -> list[str]:
    run, name = shlex.quote(str(folder.path)), str(folder.path).rstrip("/")
    return [
        f"vision_peft predict --run {run}{flags} {picture}",
        *(
            []
            if method.not_mergeable
            else [f"vision_peft merge --run {run} --out {shlex.quote(name + '.safetensors')}"]
        ),
        *([f"vision_peft export --run {run} --out {shlex.quote(f'{name}.onnx')}"] if exports else []),
    ]


class InOrder:
    """Batches for scoring: Lightning takes what has a `sampler` for torch's own loader."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def splits(
    data: ClassificationData, eval_on: str, protocol: str, keeps_val: bool = False
) -> tuple[Pictures, Pictures, str | None]:
    """What to train on, what to score on, and the latter's name; with `keeps_val` val is never trained on."""
    if eval_on == "val" or (not len(data.test) and len(data.val)):
        if not len(data.val):
            raise PeftError(f"{data.name} has no val split to choose on: give it one, or use --eval_on test.")
        if protocol == "legacy":
            raise PeftError(
                "the legacy protocol chooses the epoch on the test split: it goes with --eval_on test only."
            )
        return data.train, data.val, "val"
    if protocol == "legacy" and not len(data.test):
        raise PeftError(f"the legacy protocol needs a test split, and {data.name} has none: use --protocol honest.")
    return data.train if keeps_val else data.train + data.val, data.test, "test" if len(data.test) else None


def prepare(
    data: ClassificationData,
    settings: dict[str, Any],
    load: Callable[..., tuple[nn.Module, Backbone]],
    task: Task | None = None,
) -> tuple[nn.Module, Backbone]:
    """The adapted model at step 0, and what it expects of pictures."""
    training.seed_everything(settings["seed"], verbose=False)
    task = task or kind_of(data.task).of(data, settings)
    method, classes = settings["method"].build(), task.width
    if method.keeps_head and not task.classes:
        raise PeftError(
            f"{method.name} tells classes by a head that it keeps, and --task {task.name} has none: choose another."
        )
    if method.keeps_head:
        model, about = load(settings["backbone"], None, settings["drop_path"])
    else:
        model, about = task.model(load, settings)
    if settings["normalise"] != "checkpoint":
        mean, std = NORMALISATIONS[settings["normalise"]]
        about = dataclasses.replace(about, mean=mean, std=std)
    method = method.for_run(about.mean, about.std, classes)
    method = method.for_tasks(task.tasks) if task.tasks else method
    model = in_few_bits(suited(model, about, method, data.train, settings), settings, method)
    return adapt(model, method), about
