"""Finished runs of one backbone on the same pictures, what is frozen in all of them computed once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft_data.augment import normalise
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.jobs.runs.load import load_run, program_of
from peft_core.jobs.runs.predictions import Prediction
from peft_core.jobs.runs.use import Run, in_batches, read_trained
from peft_core.passes.together import Together


class Runs:
    """Several runs as one: predictions of each for every picture.

    Args:
        runs: name -> run, all with one transform.
        together: their models, in this order.
    """

    def __init__(self, runs: dict[str, Run], together: Together) -> None:
        self.runs, self.together = runs, together
        self.first = next(iter(runs.values()))
        self.found, self.ready = self.first.found, self.first.ready

    def predict(self, images: Any, batch_size: int = 64) -> dict[str, list[Prediction]]:
        """Run -> the class of each picture: paths, PIL images or uint8 tensors, several or a batch `B 3 H W`."""
        rows = list(self.stream((self.ready(image) for image in images), batch_size))
        return {name: [row[place] for row in rows] for place, name in enumerate(self.runs)}

    def stream(self, ready: Iterable[Tensor], batch_size: int = 64) -> Iterator[tuple[Prediction, ...]]:
        """A prediction of each run for every picture at the models' size."""
        for batch in in_batches(ready, batch_size):
            yield from self._predict(batch)

    @torch.inference_mode()
    def _predict(self, batch: list[Tensor]) -> Iterator[tuple[Prediction, ...]]:
        device = next(self.first.model.parameters()).device
        found = self.together(normalise(torch.stack(batch).to(device), self.first.mean, self.first.std))
        yield from zip(*(run.said(each) for run, each in zip(self.runs.values(), found, strict=True)), strict=True)


def open_runs(paths: Sequence[str | os.PathLike]) -> Runs:
    """Loads run folders of one backbone, which is held once; a run's name is its folder's, or its path where two share one.

    Raises:
        PeftError: a folder is none, their backbones or transforms differ, or a run takes clips.
    """
    folders = [Path(path).expanduser() for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise PeftError("--runs names one run folder twice: leave one out.")
    alike: dict[str, Any] = {}
    for folder in folders:
        program_of(folder, ("vision_peft",))
        inside = folder / "retrain" if (folder / "retrain" / "adapter").is_dir() else folder
        config, card, common = read_trained(inside, "vision_peft")
        if "clips" in card:
            raise PeftError(f"{folder} takes clips, and --runs takes runs of pictures: give it alone, with --run.")
        own: dict[str, Any] = {key: config.get(key) for key in ("backbone", "quantize")} | {
            key: common[key] for key in ("fit", "mean", "std")
        }
        for key, value in own.items():
            if alike.setdefault(key, value) != value:
                one, other = (
                    f"pictures {' × '.join(map(str, each.size))}, {each.mode}" if key == "fit" else f"{key} {each}"
                    for each in (alike[key], value)
                )
                raise PeftError(
                    f"runs predict together on one backbone and transform: {folders[0]} has {one}, {folder} {other}; predict "
                    "with each alone."
                )
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    runs: dict[str, Run] = {}

    def models() -> Iterator[nn.Module]:
        for name, folder in zip(names, folders, strict=True):
            runs[name] = load_run(folder, ("vision_peft",))
            yield runs[name].model

    together = Together(models())
    return Runs(runs, together)
