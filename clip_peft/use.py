"""`clip_peft test | predict`: what is done with a finished run, on its own classes or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from clip_peft.fit import for_method
from clip_peft.text.prompts import asked_for
from clip_peft.training.evaluate import test_augment
from clip_peft.training.features import default_cache
from clip_peft.training.few_shot import of_classes
from peft_core import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.runs.load import CLASSIFIERS, load_run
from peft_core.jobs.runs.outputs import out_file
from peft_core.jobs.runs.use import print_classes, print_predictions
from peft_core.values import Count

CLIP = ("clip_peft",)


@command("clip")
def test(
    *,
    run: str,
    data: Data | None = None,
    split: Literal["test", "val", "train"] = "test",
    classes: Literal["trained", "base", "new", "all"] = "trained",
    cache: bool = True,
) -> dict[str, Any]:
    """Score a run on its data set's test split: the classes it was trained on, the new ones, or all of them together.

    Args:
        run: The run folder.
        data: Another data set, with whatever classes it has.
        split: Which split.
        classes: `base` is the first half of the data set's labels, `new` the others, `all` one closed set of both.
        cache: Keep image features for the next time, where the image tower is frozen.
    """
    return report(run, data, split, classes, cache)


def report(run: str, data: Data | None, split: str, classes: str, cache: bool, quiet: bool = False) -> dict[str, Any]:
    """`test`'s figures; `quiet` prints nothing."""
    loaded = load_run(run, CLIP)
    if not loaded.class_names and data is None:
        raise PeftError(
            f"{run} learnt pairs, whose scores stand in its results.json: name a data set of classes with --data."
        )
    chosen = for_method(data or Data.of(loaded.config), loaded.whole.method)
    which = ("all" if data else loaded.config["classes"]) if classes == "trained" else classes
    opened = of_classes(chosen.open(), which)  # type: ignore[arg-type]
    pictures = getattr(opened, split)
    if not len(pictures):
        raise PeftError(f"{opened.name} has no {split} split: choose another with --split.")
    at = loaded.with_classes(opened.class_names)
    fit = at.fit
    decoded = chosen.decode(pictures, fit.size, test_augment(at.encoder.whole.method), **fit.how)
    if cache:
        at.encoder.folder = Path(chosen.options.get("cache_dir") or default_cache())
    found = at.task.figures(at.task.scores(at.encoder, decoded, at.places), decoded)
    if not quiet:
        of = "" if which == "all" else f"{which} classes, "
        names = f"({of}{len(opened.class_names)} names)"
        print(f"{at.task.words(found)} on {len(decoded):,} pictures of {opened.name} {split} {names}")
        each = {name: own["average_precision"] for name, own in found.get("per_label", {}).items()}
        print_classes(found.get("per_class", each))
    return found


@command("clip")
def predict(
    pictures: list[str],
    *,
    run: str,
    classes: list[str] | None = None,
    top: Count | None = None,
    batch_size: Count = 64,
    out: str | None = None,
    json: bool = False,
) -> int:
    """Print `path,class,probability` for pictures and folders of pictures, the likeliest classes first.

    Args:
        pictures: Files and folders; folders are searched through.
        run: The run folder.
        classes: Names to choose from, any; by default those it was trained on.
        top: Classes a picture; by default 5, or of any number of labels those whose probability reaches their threshold.
        batch_size: Pictures at once.
        out: A .csv file (.json with --json) to write in place of printing.
        json: JSON in place of CSV: a list of {path, classes: [{class, probability}]}.
    """
    target = None if out is None else str(out_file(out, ".json" if json else ".csv", run))
    loaded = load_run(run, CLIP if classes else CLASSIFIERS)
    loaded = loaded.with_classes(asked_for(classes, alone=loaded.alone)) if classes else loaded
    if not loaded.class_names:
        raise PeftError(f"{run} learnt pairs and has no classes of its own: name some with --classes.")
    return print_predictions(loaded, pictures, "clip_peft", top or getattr(loaded, "top", 5), batch_size, target, json)
