"""`vision_peft fit`: from a folder of pictures to a trained adapter, its figures and its report."""

from __future__ import annotations

from typing import Any, Literal

from peft_data.options import arguments, takes
from peft_data.video.clips import Clips

from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.optimizers import GaLoreFlags, MeZOFlags
from peft_core.jobs.cli.options import MethodChoice, check_unused
from peft_core.jobs.cli.shared import MACHINE, RUN, TRAINING, training
from peft_core.jobs.data import Data
from peft_core.jobs.hub.precision import Quantize
from peft_core.jobs.hub.reach import absolute
from peft_core.jobs.runs.fitting import fitted
from peft_core.jobs.runs.folder import RunFolder, run_name
from peft_core.jobs.runs.saying import sure_words
from peft_core.values import Positive, Rate, Whole
from vision_peft.dense.flags import DenseFlags
from vision_peft.tasks import TaskName
from vision_peft.video.flags import VideoFlags

FEW = 2_000
"""Training pictures up to which a data set without a recipe of its own has `few`."""


WITHOUT_MAPS = ("classify", "multi_label", "regression")
"""Tasks whose output is one of the whole picture."""


def recipe_of(settings: dict[str, Any]) -> str:
    """The recipe that suits the data set."""
    opened = settings["data"].of_task(settings["task"]).open()
    few = len(opened.train) <= FEW and not isinstance(opened.train, Clips)
    return opened.recipe or ("few" if few else "default")


@command("vision", recipe_of, {
    RUN: "data task backbone method recipe epochs",
    TRAINING: "lr batch_size optimizer weight_decay warmup final_lr label_smoothing drop_path augment resize normalise",
    "scoring": "protocol eval_on eval_every",
    MACHINE: "out seed overwrite save_every compile quantize cache_prefix video dense trainer",
})  # fmt: skip
@takes(training, batch_size=64, weight_decay=1e-4, final_lr=0.01)
def fit(
    *,
    data: Data,
    task: TaskName = "classify",
    backbone: str = "reference",
    quantize: Quantize = "none",
    method: MethodChoice = "lora",  # type: ignore[assignment]
    protocol: Literal["honest", "legacy"] = "honest",
    eval_on: Literal["test", "val"] = "test",
    eval_every: Whole = 0,
    lr: Positive | Literal["find"] = 1e-3,
    optimizer: Literal["adamw", "sgd", "paged_adamw", "galore", "mezo", "prodigy", "schedule_free"] = "adamw",
    galore: GaLoreFlags = None,  # type: ignore[assignment]
    mezo: MeZOFlags = None,  # type: ignore[assignment]
    epochs: Whole = 0,
    warmup: Rate = 0.1,
    label_smoothing: Rate = 0.0,
    drop_path: Rate = 0.0,
    augment: str = "none",
    resize: Literal["squash", "crop"] = "squash",
    normalise: Literal["checkpoint", "imagenet", "half", "clip", "none"] = "checkpoint",
    video: VideoFlags = None,  # type: ignore[assignment]
    dense: DenseFlags = None,  # type: ignore[assignment]
    compile: bool = False,
    cache_prefix: Literal["auto", "on", "off"] = "auto",
    **common: Any,
) -> dict[str, Any]:
    """Train a model of pictures with few parameters, score it, and write a run folder.

    Args:
        data: A data set (`list data`) or a folder of pictures; its options are --data.OPTION.
        task: `classify` (one class a picture), `multi_label` (any number of labels), `regression` (a number),
            `segment` (a class a pixel), `depth` (a distance a pixel), `detect` (boxes).
        backbone: `reference`, a timm name, a model folder, or ARCHITECTURE@FILE.safetensors.
        quantize: Bits of the frozen linears: nf4 (bitsandbytes), int8, int4, int2; adapters are trained beside them.
        method: A method or preset (`list methods`); its settings are --method.SETTING.
        recipe: A name (`list recipes`) or a YAML's path; by default the data set's own, `few` up to 2,000 training pictures, or
            `default`.
        out: The run folder; by default runs/DATA-BACKBONE-METHOD-SEED.
        seed: Of the head, the adapter, the order of the pictures and all chance in training.
        protocol: `honest` reports the last epoch; `legacy` the epoch that scored best on the test set.
        eval_on: `test` trains on train + val; `val` trains on train and scores val, to choose settings by.
        lr: Highest learning rate; `find` tries rates on training batches first, and takes a tenth of the one of the lowest loss.
        eval_every: Score every so many epochs besides; 0 scores once, at the end (legacy: every epoch).
        optimizer: AdamW, SGD with momentum 0.9, AdamW whose state bitsandbytes pages out of a full GPU, AdamW whose state lies
            in a subspace of each gradient (galore), or two forwards a step and no gradient (mezo: many more steps, low rates).
        galore: Of --optimizer galore alone, e.g. --galore.rank 128.
        mezo: Of --optimizer mezo alone, e.g. --mezo.eps 1e-2.
        epochs: Passes over the training pictures; 0 takes the recipe's number (its --trainer.max_epochs).
        warmup: Share of the steps over which the learning rate rises to lr.
        label_smoothing: Share of the target that is spread over all classes.
        drop_path: Stochastic depth of the last block, rising from 0 in the first.
        augment: none, flip, crop, multi_scale, jitter (each with _flip behind it, too: mirrors), crop_half_flip, randaug
            (mirrors), randaug_crop or timm_randaug_crop; parts are cut from the file's own frame.
        resize: `squash` to the model's size, or `crop` the centre.
        normalise: The checkpoint's own mean and std, ImageNet's, 0.5, CLIP's, or none.
        dense: Of tasks on feature maps (pixels, boxes), e.g. --dense.head pyramid --dense.size 224.
        video: How the model runs on clips, e.g. --video.attention joint.
        compile: Compile the model with torch.compile.
        cache_prefix: Compute once what comes before the first trained block, where nothing in it is random.
    """
    settings = arguments(locals())
    settings["data"] = data = data.of_task(task).absolute()
    opened = data.open()
    parts = (opened.name, backbone.rpartition("/")[2], method.name, f"seed{settings['seed']}")
    settings["out"] = settings["out"] or run_name(*parts)
    check_unused(settings, {
        **{name: f"--optimizer {name}" for name in ("galore", "mezo") if optimizer != name},
        **({} if isinstance(opened.train, Clips) else {"video": "clips"}),
        **({"dense": "tasks on feature maps (pixels, boxes)"} if task in WITHOUT_MAPS else {}),
    })  # fmt: skip
    folder = folder_of(settings)
    return fitted(folder, opened, settings, "vision_peft.job", headline)


def folder_of(settings: dict[str, Any]) -> RunFolder:
    """The folder of a run with these settings; the backbone in them becomes a full path."""
    settings["backbone"] = absolute(settings["backbone"])
    return RunFolder(settings["out"], "vision_peft fit", fit.defaults(settings))


def headline(results: dict[str, Any]) -> str:
    count = results["parameters"]
    if results["evaluated_on"] is None:
        scored = "not scored (there are no pictures apart from the training ones)"
    else:
        from vision_peft.tasks import kind_of

        words = kind_of(results.get("task", "classify")).words(results)
        scored = f"{words}{sure_words(results)} on {results['evaluated_on']}"
    return f"{scored}, {count['inserted']:,} inserted + {count['head']:,} head parameters"
