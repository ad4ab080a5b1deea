"""`clip_peft retrieve`: the pictures that sentences speak of."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch
import torch.nn.functional as F

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.runs.load import load_run
from peft_core.jobs.runs.outputs import out_file
from peft_core.jobs.runs.use import Ready
from peft_core.values import Count


@command("clip")
def retrieve(texts: list[str], *, run: str, pictures: list[str], top: Count = 5, out: str | None = None) -> int:
    """Print `text,path,similarity`: for each sentence the pictures that are nearest to it. (`predict --classes` names pictures.)

    Args:
        texts: Sentences.
        run: The run folder of a method that grafts (`fit --recipe pairs`, lora, …).
        pictures: Files and folders; folders are searched through.
        top: Pictures a sentence.
        out: A .csv file to write in place of printing.
    """
    from clip_peft.learner import OpenVocabularyMethod
    from clip_peft.pairs.texts import Captions

    if not texts or not all(text.strip() for text in texts):
        raise PeftError("retrieve needs a sentence: clip_peft retrieve 'a red star' --run RUN --pictures FOLDER.")
    target = None if out is None else out_file(out, ".csv", run)
    loaded = load_run(run, ("clip_peft",))
    method = loaded.model.method
    if isinstance(method, OpenVocabularyMethod):
        raise PeftError(
            f"{method.name} learnt to name classes, not to read sentences: use predict, or a run of `--recipe pairs`."
        )
    clip = loaded.model.learner.clip
    ready, features = Ready(loaded, loaded.found(pictures)), []
    with torch.no_grad():
        wanted = F.normalize(Captions(clip, texts).features(torch.arange(len(texts))).float(), dim=-1)
        for pixels in ready:
            images = loaded.encoder.images(pixels[None])
            features.append(F.normalize(clip.image_features(images).float(), dim=-1))
    code = ready.told("clip_peft")
    if not features:
        raise PeftError("none of the pictures can be read.")
    near = wanted @ torch.cat(features).T
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("text", "path", "similarity"))
    best = near.topk(min(top, len(features)))
    for sentence, values, rows in zip(texts, best.values.tolist(), best.indices.tolist(), strict=True):
        writer.writerows((sentence, ready.read[row], f"{value:.4f}") for value, row in zip(values, rows, strict=True))
    if target is None:
        print(text.getvalue(), end="")
    else:
        write_files(Path(target).parent, {target.name: text.getvalue().encode(errors="backslashreplace")})
        print(f"{len(texts):,} sentences in {target}")
    return code
