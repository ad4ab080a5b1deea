"""`diffusion_peft evaluate`: how good runs are by a protocol: figures, a table of methods, a report to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from diffusion_peft.commands.ranges import Denoising
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.evaluation.asked import How
from diffusion_peft.evaluation.tables import show, write_evaluation
from diffusion_peft.protocols import find_protocol
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.options import Choice
from peft_core.jobs.runs.folder import RunFolder, plain_config
from peft_core.values import Count, Seed


@command("diffusion")
def evaluate(
    *,
    run: list[str],
    out: str | None = None,
    protocol: str | None = None,
    labels: list[str] | None = None,
    prompts: list[str] | None = None,
    drift_prompts: list[str] | None = None,
    subject: str | None = None,
    class_name: str | None = None,
    count: Count = 4,
    seed: Seed = 0,
    scales: list[float] | None = None,
    image_features: str | None = None,
    clip: str | None = None,
    steps: Denoising = 30,
    guidance: float | None = None,
    at_once: Count = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Judge runs by a protocol (`list protocols`), beside their base and real pictures. Pictures are drawn once and kept.

    Args:
        run: One run folder or several; the table has a row a method.
        out: The folder: pictures, results.json, results.csv, table.md, report.html; by default RUN/evaluation.
        protocol: The one that suits the runs, where not given.
        labels: A name for each run's row in the table; by default its method's.
        prompts: With {} where the subject goes, or a text file with one a line.
        drift_prompts: Prompts without the subject, or a text file, whose pictures should stay what they are.
        subject: What the runs call it, e.g. "a <toy>"; by default what their prompts say.
        class_name: What it is usually called, e.g. "a dog"; by default what their class prompts say.
        count: Pictures a prompt, with seeds seed, seed + 1, …
        seed: Of the first picture.
        scales: Of the adapter's scale sweep, by default 0 0.25 0.5 0.75 1; one value draws none.
        image_features: A timm model; by default DINO, `reference` for drawn pictures.
        clip: An open_clip model; by default ViT-B-32/openai, `reference` for drawn pictures.
        steps: Denoising steps.
        guidance: Weight of the prompt; by default that of the base's pipeline.
        at_once: Pictures in one batch.
        dtype: Of the weights that draw.
        overwrite: Replace another evaluation in the same folder; its pictures are kept.
    """
    if len(run) > 1 and out is None:
        raise PeftError("several runs need --out, the folder of their common table.")
    settings = dict(locals())
    runs = settings["run"] = [str(Path(path).expanduser().absolute()) for path in dict.fromkeys(run)]
    folder = RunFolder(out or f"{runs[0]}/evaluation", "diffusion_peft evaluate")
    name, module = find_protocol(protocol, [Path(path) for path in runs])
    how = how_of(settings)
    if labels is not None and len(labels) != len(runs):
        raise PeftError(f"--labels names {len(labels)} of {len(runs)} runs: give one for each.")
    config = plain_config(folder, settings)
    folder.check(config, overwrite)
    module.check([Path(path) for path in runs], how)
    folder.begin(config, overwrite)
    evaluation = module.evaluate([Path(path) for path in runs], folder.path, how)
    results = write_evaluation(folder, name, evaluation)
    show(folder, evaluation)
    return results


def how_of(settings: Mapping[str, Any]) -> How:
    """What protocols read, from `evaluate`'s options; those that are missing have their defaults."""
    options = {key: each.default for key, each in evaluate.parameters.items()} | dict(settings)
    scales = How.scales if options["scales"] is None else tuple(sorted(set(options["scales"])))
    lists = {key: tuple(options[key]) if options[key] else None for key in ("labels", "prompts", "drift_prompts")}
    plain = {key: options[key] for key in ("subject", "class_name", "count", "seed", "image_features", "clip", "dtype")}
    drawing = Drawing(options["steps"], options["guidance"], at_once=options["at_once"])
    return How(**lists, **plain, scales=scales if len(scales) > 1 else (), drawing=drawing)


class EvaluationOptions(Choice):
    """`--evaluation.count 2`: the options of `evaluate`, but for those that a sweep decides."""

    named, complete = False, False
    hidden = frozenset(("run", "out", "overwrite", "labels"))

    @classmethod
    def accepts(cls, name: str) -> Callable:
        return evaluate.function
