"""`vision_peft test | predict | merge | export`: what is done with a finished run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from peft_data.augment import normalise
from peft_data.video.batches import batches_of
from safetensors.torch import save
from torch import Tensor, nn

from peft_core import NotMergeable, PeftError, dequantise
from peft_core.files import write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.hub.transformers_models import FromTransformers, is_of_transformers
from peft_core.jobs.runs.lean import leave_out_metrics
from peft_core.jobs.runs.load import CLASSIFIERS, load_run
from peft_core.jobs.runs.onnx_file import needs_onnx, write_onnx
from peft_core.jobs.runs.outputs import out_file
from peft_core.jobs.runs.use import as_metadata, print_classes, print_predictions, print_table
from peft_core.values import Count, Range
from vision_peft.small import how_to_cut, merged
from vision_peft.tasks import task_of_card

if TYPE_CHECKING:
    from vision_peft.tasks.base import Task


@command("vision")
def test(
    *, run: str, data: Data | None = None, split: Literal["test", "val", "train"] = "test", batch_size: Count = 128
) -> dict[str, Any]:
    """Score a run on its data set's test split, or on another data set with the same classes.

    Args:
        run: The run folder.
        data: Another data set.
        split: Which split.
        batch_size: Pictures at once.
    """
    leave_out_metrics()
    loaded = load_run(run, CLASSIFIERS)
    task = task_of_card(loaded.card)
    chosen = (data or Data.of(loaded.config)).of_task(task.reads or task.name)
    opened = chosen.open()
    if opened.class_names != loaded.class_names:
        raise PeftError(
            f"{opened.name} has other classes than {run} was trained on: give a data set with the same ones."
        )
    pictures = getattr(opened, split)
    if not len(pictures):
        raise PeftError(f"{opened.name} has no {split} split: choose another with --split.")
    decoded = chosen.decode(pictures, loaded.fit.size, mode=loaded.fit.mode, crop_pct=loaded.fit.crop_pct)
    decoded = task.ready(decoded, opened)
    device, meter = next(loaded.model.parameters()).device, task.meter()
    with torch.inference_mode():
        for batch in batches_of(decoded, batch_size, shuffle=False):
            for part in task.shares(loaded.model, batch):
                meter.update(loaded.model(normalise(part.images.to(device), loaded.mean, loaded.std)).cpu(), part)
    scores = meter.scores()
    figures, per_class = task.figures(scores), task.parts(scores)
    print(f"{task.words(figures)} on {len(decoded):,} pictures of {opened.name} {split}")
    print_classes({name: value[task.part] if isinstance(value, dict) else value for name, value in per_class.items()})
    return {task.score: figures[task.score], "per_class": per_class, "pictures": len(decoded)}


@command("vision")
def predict(
    pictures: list[str], *, run: str | None = None, runs: list[str] | None = None, top: Count = 1, batch_size: Count = 64,
    out: str | None = None, json: bool = False, task: str | None = None,
) -> int:  # fmt: skip
    """Print `path,class,probability` for pictures and folders of pictures, the likeliest classes first; of several runs on one
    backbone `path,RUN,RUN …` with the likeliest class of each, what is frozen in all of them computed once.

    Args:
        pictures: Files and folders; folders are searched through.
        run: The run folder.
        runs: Run folders of one backbone, in place of --run; end them with another option, or give the pictures first.
        top: Classes a picture, of one run.
        batch_size: Pictures at once.
        out: A .csv file (.json with --json) to write in place of printing; of masks a folder, of boxes a .json file.
        json: JSON in place of CSV: a list of {path, classes: [{class, probability}]}.
        task: Of a run of several data sets, the one whose classes are told.
    """
    if (run is None) == (not runs):
        raise PeftError("predict needs --run, a run folder, or --runs, several on one backbone, and not both.")
    loaded = None if run is None else load_run(run, CLASSIFIERS)
    own = getattr(loaded, "task", None)
    if own is not None and own.writes and task is None:
        return own.write_predictions(loaded, pictures, out, batch_size, "vision_peft")
    target = None
    for each in [run] if run is not None else runs or []:
        target = None if out is None else str(out_file(out, ".json" if json else ".csv", each))
    if loaded is not None:
        if task is not None:
            chosen = task_of_card(loaded.card).choose(task, loaded.model)
            loaded = dataclasses.replace(loaded, task=chosen)
        return print_predictions(loaded, pictures, "vision_peft", top, batch_size, target, json)
    if top > 1:
        raise PeftError(
            "of several runs predict prints the likeliest class of each: leave --top out, or give one --run."
        )
    from vision_peft.together import open_runs  # needs timm

    several = open_runs(runs or [])
    columns = list(several.runs)

    def lines(ready: Iterable) -> Iterator[list[list[str]]]:
        runs = list(several.runs.values())
        for each in several.stream(ready, batch_size):
            cells = (run.cells(one, 1) for run, one in zip(runs, each, strict=True))
            yield [["; ".join(row[0] for row in rows) for rows in cells]]

    return print_table(several, pictures, "vision_peft", columns, lines, target, json)


@command("vision")
def merge_(*, run: str, out: str) -> Path:
    """Write the adapter into the backbone's weights: a file that plain timm loads, or plain transformers where it is theirs.

    Args:
        run: The run folder.
        out: The .safetensors file to write.
    """
    target = out_file(out, ".safetensors", run)
    loaded = load_run(run, CLASSIFIERS)
    cut = merged(loaded.model)
    if isinstance(loaded.model, FromTransformers):
        write_files(target.parent, {target.name: save(loaded.model.stock_state(), as_metadata(loaded))})
        print(f"{target} holds the merged weights; plain transformers loads it:\n{loaded.model.how_to_load(target)}")
        return target
    from vision_peft.video.classified import timm_state  # needs timm, which other commands must not wait for

    state = {key: value.detach().cpu().contiguous() for key, value in timm_state(loaded.model).items()}
    write_files(target.parent, {target.name: save(state, as_metadata(loaded))})
    backbone = loaded.config["backbone"]
    arguments: dict[str, Any] = {"num_classes": len(loaded.class_names)}
    arguments |= {} if cut else {"checkpoint_path": str(target)}
    if backbone == "reference":
        from vision_peft.reference import CARD

        arguments = {key: value for key, value in CARD["timm"].items() if key != "model_name"} | arguments
    name = CARD["timm"]["model_name"] if backbone == "reference" else backbone.partition("@")[0]
    words = ", ".join([f'"{name}"', *(f"{key}={value!r}" for key, value in arguments.items())])
    fit = loaded.fit
    crop = {"crop_pct": 1.0, "crop_mode": "squash"} if fit.mode == "squash" else {"crop_pct": fit.crop_pct}
    looks = {
        "input_size": (3, *fit.size),
        "mean": loaded.mean,
        "std": loaded.std,
        "interpolation": fit.interpolation,
    } | crop
    shown = ", ".join(f"{key}={value!r}" for key, value in looks.items())
    whose = "transformers" if is_of_transformers(backbone) else "timm"
    print(
        f"{target} holds the merged weights, and in its metadata class names, mean, std and crop; plain {whose} loads it:"
    )
    made = f"  model = timm.create_model({words}).eval()\n" + how_to_cut(cut, target)
    if "clips" in loaded.card:
        print(made, end="")
        return target
    task = task_of_card(loaded.card)
    if lines := task.how_to_load(name, arguments, shown, target, loaded.model):
        print(lines)
        return target
    shows = "model(transform(PIL.Image.open('picture.png').convert('RGB'))[None])"
    print(
        f"{made}"
        f"  transform = timm.data.create_transform({shown})\n"
        f"  names = json.loads(safetensors.safe_open({str(target)!r}, 'np').metadata()['class_names'])\n"
        f"  {task.line(shows)}"
    )
    return target


class Deployed(nn.Module):
    """What a task makes of pictures `B 3 H W` with values from 0 to 1, such as probabilities `B C`: normalisation and softmax
    are inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.task.finished(self.model((image - self.mean) / self.std))


@command("vision")
def export(
    *, run: str, out: str, format: Literal["onnx", "stock"] = "onnx", opset: Annotated[int, Range(18)] = 18
) -> Path:
    """Write an ONNX file: pictures with values from 0 to 1 in, probabilities out, any batch size.

    Args:
        run: The run folder.
        out: The .onnx file to write; .safetensors for --format stock.
        format: onnx, or stock: what plain timm loads, as `merge` writes it.
        opset: ONNX operator set.
    """
    if format == "stock":
        return merge_(run=run, out=out)
    target = out_file(out, ".onnx", run)
    needs_onnx()
    loaded = load_run(run, CLASSIFIERS)
    if "clips" in loaded.card:
        raise PeftError(f"{run} takes clips, and export writes models of pictures: use the run folder with `predict`.")
    task = task_of_card(loaded.card)
    if task.no_export:
        raise PeftError(f"{run} cannot be written as one graph: {task.no_export}.")
    dequantise(loaded.model)  # exporters know plain linears
    with contextlib.suppress(NotMergeable):  # then the graph holds the adapter beside the backbone
        merged(loaded.model)
    deployed = Deployed(loaded.model, loaded.mean, loaded.std, task)
    return write_onnx(deployed, loaded, target, opset, task.output, task.pixels)
