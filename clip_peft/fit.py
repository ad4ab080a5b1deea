"""`clip_peft fit`: from a few pictures a class to a trained prompt or adapter, its figures and its report."""

from __future__ import annotations

from typing import Any, Literal

from peft_data.augment import augmentation
from peft_data.options import arguments, takes

from clip_peft.pairs.fit import RECIPE, fit_pairs
from clip_peft.tasks import kind_of
from clip_peft.training.few_shot import Classes, Spread, chosen
from peft_core.config_files import list_configs
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.options import MethodChoice
from peft_core.jobs.cli.shared import MACHINE, RUN, TRAINING, training
from peft_core.jobs.data import Data
from peft_core.jobs.hub.precision import Quantize
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.fitting import fitted
from peft_core.jobs.runs.folder import RunFolder, run_name
from peft_core.method import Method
from peft_core.values import NotNegative, Positive, Rate, Whole


def recipe_of(settings: dict[str, Any]) -> str:
    """The recipe that is called as the preset or as the method it sets, else CLIP-LoRA's for what grafts and CoOp's."""
    choice, recipes = settings["method"], list_configs("recipe", "clip")
    method = choice.build()
    found = next((name for name in (choice.name, method.name) if name in recipes), None)
    return found or ("lora" if method.grafts else "coop")


@command("clip", recipe_of, {
    RUN: "data backbone method recipe shots spread classes template epochs",
    TRAINING: "lr batch_size optimizer weight_decay final_lr steps_per_shot warmup_epochs warmup_lr stepwise augment",
    "scoring": "eval_on choose_on hold_out",
    MACHINE: "out seed overwrite save_every quantize precision cache_views text_memory trainer",
}, recipes={RECIPE: fit_pairs})  # fmt: skip
@takes(training, seed=1, batch_size=32, weight_decay=5e-4)
def fit(
    *,
    data: Data,
    backbone: str = "reference",
    quantize: Quantize = "none",
    method: MethodChoice = "coop",  # type: ignore[assignment]
    shots: Whole = 16,
    spread: Spread = "balanced",
    classes: Classes = "all",
    template: str | None = None,
    eval_on: Literal["test", "val"] = "test",
    choose_on: Literal["val", "train"] = "val",
    hold_out: Rate = 0.0,
    cache_views: Whole = 10,
    augment: str = "crop_flip",
    optimizer: Literal["sgd", "adamw", "adam", "prodigy", "schedule_free"] = "sgd",
    lr: Positive | Literal["find"] = 2e-3,
    epochs: Whole = 0,
    steps_per_shot: Whole = 0,
    warmup_epochs: NotNegative = 1.0,
    warmup_lr: NotNegative = 1e-5,
    stepwise: bool = False,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    text_memory: Positive | None = None,
    **common: Any,
) -> dict[str, Any]:
    """Train a prompt, adapter or cache on a few pictures a class, score it, and write a run folder.

    Args:
        data: A data set (`list data`) or a folder of pictures; its options are --data.OPTION. For dual_coop pictures of any
            number of labels: a .csv of one column a label, lists, COCO, VOC.
        backbone: `reference`, open_clip's ARCHITECTURE/TAG, hf-hub:OWNER/MODEL, a folder, or ARCHITECTURE@FILE.safetensors.
        quantize: Bits of the frozen linears: nf4 (bitsandbytes), int8, int4, int2; adapters are trained beside them.
        method: A method or preset (`list methods`); its settings are --method.SETTING.
        recipe: A name (`list recipes`) or a YAML's path; by default the method's own. `pairs` trains on pictures with captions,
            with options of its own: `fit --recipe pairs --help`.
        out: The run folder; by default runs/DATA-BACKBONE-METHOD-SHOTS-CLASSES-SEED.
        shots: Training pictures a class, drawn as CoOp draws them; 0 takes all (of pictures with several labels always).
        spread: `natural` draws shots × classes pictures whatever their class, so that classes have more and fewer.
        classes: `base` trains and scores the first half of the labels, `new` the others.
        seed: Of the draw, the start, the order of the pictures and all chance in training.
        template: Text around a class name, with {}; a data set's name; or `ensemble`. By default the method's own, which is
            the one that its authors give for the data set; "a photo of a {}." for methods that graft, as CLIP-LoRA's authors.
        eval_on: Score test, or val, to choose settings by.
        choose_on: What a cache's strengths are chosen on: val, or the training pictures, each left out in turn (where there is
            no val, too).
        hold_out: Part of each class's drawn training pictures that is val in place of the data's own.
        cache_views: Augmented views of each picture whose features are computed once, where the image tower is frozen;
            0 turns the cache off.
        augment: none, flip, crop_flip, crop_half_flip (parts of half the area or more) or randaug.
        optimizer: SGD with momentum 0.9, AdamW, or Adam, whose weight decay is L2; prodigy, which finds its rate (--lr 1), or
            schedule_free AdamW, whose weights' mean is what is kept.
        lr: Highest learning rate; `find` tries rates on training batches first, and takes a tenth of the one of the lowest loss.
        batch_size: Pictures a step, over all devices; a rest that fills no step is left out.
        epochs: Passes over the training pictures. 0: the recipe's steps_per_shot, else CoOp's number: 50 for 1 shot, 100 up to 4,
            200 from 5 on, 50 above 500 classes.
        steps_per_shot: Steps for each shot, rounded to whole epochs, where epochs is 0.
        warmup_epochs: At the constant rate warmup_lr; none in a run of no more epochs than these.
        warmup_lr: See warmup_epochs.
        stepwise: The cosine goes down with every step rather than every epoch.
        precision: bf16 is autocast in training, with float32 parameters; auto takes it where the processor has it and it
            pays. Cached features and scores are float32.
        text_memory: Bytes that the texts of a step may take; beyond, classes run in chunks.
    """
    settings = arguments(locals())
    settings["data"] = data = for_method(data, method.build()).absolute()
    augmentation(augment)
    opened = chosen(data.open(), shots, settings["seed"], classes, spread, hold_out)
    if not len(opened.train):
        raise PeftError(
            f"{opened.name} has no training pictures: it is there to score other runs on with `test --data`."
        )
    settings["backbone"] = absolute(backbone)
    parts = (opened.name, backbone.rpartition("/")[2], method.name, f"{shots}shots", classes, f"seed{settings['seed']}")
    folder = RunFolder(settings["out"] or run_name(*parts), "clip_peft fit", fit.defaults(settings))
    return fitted(folder, opened, settings, "clip_peft.training.job", headline)


def for_method(data: Data, method: Method) -> Data:
    """The data as the method learns them: pictures of a class each, or of any number of labels."""
    task = getattr(method, "task", data.task)
    return data if task == data.task else data.of_task(task)


def headline(results: dict[str, Any]) -> str:
    if results["evaluated_on"] is None:
        scored = "not scored (there are no pictures apart from the training ones)"
    else:
        which = "" if results["classes"] == "all" else f"{results['classes']} classes of "
        words = kind_of(results.get("task", "classify")).words(results)
        scored = f"{words} on {which}{results['evaluated_on']}"
    return f"{scored}, {results['parameters']['trainable']:,} trained parameters"
