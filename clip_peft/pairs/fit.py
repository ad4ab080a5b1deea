"""`clip_peft fit --recipe pairs`: both towers adapted to pictures and their captions."""

from __future__ import annotations

from typing import Any, Literal

from peft_data.augment import augmentation
from peft_data.options import arguments, takes
from peft_data.pairs import PairData

from clip_peft.pairs.losses import Loss
from clip_peft.pairs.source import PairSource
from clip_peft.text.templates import DEFAULT
from peft_core.config_files import list_configs
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.cli.shared import MACHINE, RUN, TRAINING, training
from peft_core.jobs.hub.precision import Quantize
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.folder import RunFolder, run_name, run_once
from peft_core.jobs.runs.saying import few
from peft_core.values import Count, Positive, Share, Whole

RECIPE = "pairs"


@command("clip", lambda settings: RECIPE if RECIPE in list_configs("recipe", "clip") else None, {
    RUN: "data backbone method recipe loss epochs zero_shot template",
    TRAINING: "lr image_lr text_lr train_scale batch_size chunk optimizer weight_decay warmup final_lr augment",
    MACHINE: "out seed overwrite save_every quantize precision curve trainer",
})  # fmt: skip
@takes(training, batch_size=256, lr=2e-4, weight_decay=1e-2, seed=1)
def fit_pairs(
    *,
    data: PairSource,
    backbone: str = "reference",
    quantize: Quantize = "none",
    method: MethodChoice = "lora",  # type: ignore[assignment]
    loss: Loss = "softmax",
    zero_shot: list[str] | None = None,
    template: str = DEFAULT,
    chunk: Whole = 0,
    image_lr: Positive | None = None,
    text_lr: Positive | None = None,
    train_scale: bool = False,
    augment: str = "none",
    optimizer: Literal["sgd", "adamw", "adam"] = "adamw",
    warmup: Share = 0.1,
    epochs: Count = 10,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    curve: Whole = 5,
    **common: Any,
) -> dict[str, Any]:
    """Train both towers of a CLIP or SigLIP model on pictures with captions; score retrieval and zero-shot, before and after.

    Args:
        data: world/pairs, a .csv or .tsv (path,caption), a folder of pictures with a .txt beside each, .tar shards of
            webdataset, or hf/NAME; its options are --data.OPTION.
        backbone: `reference`, open_clip's ARCHITECTURE/TAG, hf-hub:OWNER/MODEL, a folder, or ARCHITECTURE@FILE.safetensors.
        quantize: Bits of the frozen linears: nf4 (bitsandbytes), int8, int4, int2; adapters are trained beside them.
        method: A method that grafts, or a preset (`list methods`); its settings are --method.SETTING.
        recipe: pairs.
        out: The run folder; by default runs/DATA-BACKBONE-METHOD-pairs-SEED.
        seed: Of the start, the order of the pictures and all chance in training.
        loss: softmax (CLIP), or sigmoid (SigLIP) for models with a logit bias.
        zero_shot: Data sets of classes (`list data`, folders) whose zero-shot accuracy is looked at, too, for what is forgotten.
        template: Text around their class names, with {}.
        chunk: Pairs that run at once; the loss still has all of the batch. 0: the batch in one piece.
        image_lr, text_lr: The rate of a tower, where it is not lr.
        train_scale: The logit scale trains (100 at most), and the logit bias where there is one.
        batch_size: Pairs a step, over all devices: each picture is told apart from as many captions. A rest is left out.
        augment: none, flip, crop_flip, crop_half_flip or randaug.
        optimizer: SGD with momentum 0.9, AdamW, or Adam, whose weight decay is L2.
        warmup: Part of the steps in which the rate rises.
        epochs: Passes over the training pictures; each draws one of a picture's captions.
        precision: bf16 is autocast in training; auto takes it on GPUs that have it.
        curve: Steps from the stock model (0) to the trained one (1) at which both are scored: WiSE-FT's curve; 0 leaves it out.
    """
    settings = arguments(locals())
    settings["data"] = data = data.absolute()
    augmentation(augment)
    if not method.build().grafts:
        raise PeftError(
            f"{method.name} learns the names of classes, of which pairs have none: take a method that grafts into the towers "
            "(lora, adapter, bitfit, full)."
        )
    if "{}" not in template:
        raise PeftError(f'template "{template}" holds no {{}}, where the class name goes.')
    opened = data.open()
    check_batches(opened, settings["batch_size"])
    settings["backbone"] = absolute(backbone)
    parts = (opened.name, backbone.rpartition("/")[2], method.name, RECIPE, f"seed{settings['seed']}")
    folder = RunFolder(settings["out"] or run_name(*parts), "clip_peft fit", fit_pairs.defaults(settings))

    def work(config: dict[str, Any]) -> dict[str, Any]:
        from clip_peft.pairs.job import run

        return run(folder, opened, settings, config)

    examples = few([f"“{own[0]}”" for own in opened.train.captions[:3]])
    return run_once(
        folder,
        settings,
        work,
        headline,
        opened.notes,
        [("data", f"{opened.name}: {opened.summary}"), ("captions", examples)],
    )


def check_batches(data: PairData, batch: int) -> None:
    """Raises PeftError where batches would hold nothing to tell apart: fewer than two pairs, or one caption alone, as it comes
    to be where most pictures have the same one."""
    if batch < 2:
        raise PeftError("a batch of one pair has nothing to be told apart from: give --batch_size 2 or more.")
    counts: dict[str, int] = {}
    for own in data.train.captions:
        counts[own[0]] = counts.get(own[0], 0) + 1
    most, number = max(counts.items(), key=lambda item: item[1])
    if (number / len(data.train)) ** (min(batch, len(data.train)) - 1) > 1e-3:
        raise PeftError(
            f'{number:,} of {len(data.train):,} pictures have the caption "{most}", so that batches of {batch} would hold it '
            "alone and have no negatives: raise --batch_size, or give pictures captions of their own."
        )


def headline(results: dict[str, Any]) -> str:
    before, after = results["before"], results["after"]
    words = ["not scored (there are no pairs apart from the training ones)"]
    if after["retrieval"] is not None:
        words = [
            f"{way.replace('_', ' ')} R@1 {value:.3f} (before {before['retrieval'][f'{way}_r1']:.3f})"
            for way in ("image_to_text", "text_to_image")
            for value in [after["retrieval"][f"{way}_r1"]]
        ]
        words[-1] += f" on {results['evaluated_on']}"
    words += [
        f"zero-shot {name} {value:.3f} (before {before['zero_shot'][name]:.3f})"
        for name, value in after["zero_shot"].items()
    ]
    return f"{', '.join(words)}, {results['parameters']['trainable']:,} trained parameters"
