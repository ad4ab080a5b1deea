"""`vision_peft bit_delta`: a finished run of full fine-tuning in one bit a weight."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.video.batches import batches_of
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.hub.precision import methods_of
from peft_core.values import Count, Positive, Seed, Whole


@command("vision")
def bit_delta(
    *, run: str, out: str, steps: Whole = 200, batch_size: Count = 4, lr: Positive = 1e-4, seed: Seed = 0
) -> dict[str, Any]:
    """Store a finished run of full fine-tuning as signs and one scale a matrix; prints sizes and accuracies before and after.

    BitDelta (Liu et al., NeurIPS 2024); the scales are distilled from the run's model on its training pictures. The new run
    folder is used like any other.

    Args:
        run: The run folder, of --method full.
        out: The new run folder.
        steps: Of distillation; 0 leaves the scales at the mean change.
        batch_size: Pictures a step.
        lr: Of the scales, falling along a cosine.
        seed: Of the order of the pictures.
    """
    from peft_core import adapt
    from peft_core.methods.quantised.bit_delta import BitDelta, distil, take
    from vision_peft.backbones import load_backbone
    from vision_peft.derived import free_folder, save_as, write_about
    from vision_peft.job import splits
    from vision_peft.run import classifier

    loaded, folder = classifier(run, "bit_delta"), free_folder(out)
    before = methods_of(loaded.card)
    if "clips" in loaded.card or any(method.keeps_originals for method in before):
        what = (
            "takes clips" if "clips" in loaded.card else f"was trained with {loaded.card['adaptations'][0]['method']}"
        )
        raise PeftError(f"{run} {what}: bit_delta is for classifiers of pictures that --method full trained whole.")
    chosen = Data.of(loaded.config)
    opened = chosen.open()
    train, scored, name = splits(opened, loaded.config["eval_on"], loaded.config["protocol"])
    device = next(loaded.model.parameters()).device

    def batches(pictures: Any, size: int, **order: Any) -> Iterator[tuple[Tensor, Tensor]]:
        decoded = chosen.decode(pictures, loaded.fit.size, mode=loaded.fit.mode, crop_pct=loaded.fit.crop_pct)
        for batch in batches_of(decoded, size, **order):
            yield normalise(batch.images.to(device), loaded.mean, loaded.std), batch.labels

    def accuracy(model: nn.Module) -> float | None:
        if not len(scored):
            return None
        with torch.inference_mode():
            right = [model(x).argmax(-1).cpu() == truth for x, truth in batches(scored, 64, shuffle=False)]
        return torch.cat(right).double().mean().item()

    model, _ = load_backbone(loaded.config["backbone"], len(loaded.class_names), loaded.config["drop_path"])
    method = BitDelta()
    adapt(model.to(device).eval(), method)
    take(model, method, loaded.model)
    found: dict[str, Any] = {"accuracy": {"before": accuracy(loaded.model), "signs": accuracy(model)}}
    passes = (batches(train, batch_size, seed=seed + number) for number in itertools.count())
    if steps:
        found["loss"] = distil(model, method, loaded.model, (x for each in passes for x, _ in each), steps, lr)
    found["accuracy"]["after"] = accuracy(model)
    save_as(folder, loaded, model)
    sizes = [sum(file.stat().st_size for file in (Path(at) / "adapter").iterdir()) for at in (run, folder)]
    found |= {"evaluated_on": name, "bytes": dict(zip(("before", "after"), sizes, strict=True)), "steps": steps}
    write_about(folder, loaded, {"name": method.name}, found, f"What {run} learnt, in signs and scales")
    print(f"{folder}: {sizes[0] / 1e6:,.1f} MB became {sizes[1] / 1e6:,.1f}")
    for when, value in found["accuracy"].items():
        print(f"{when:>6}  accuracy " + ("-" if value is None else f"{value:.4f}") + (f" on {name}" if name else ""))
    return found
