"""Subjects × prompts: is it the subject, does it obey the prompt, do samples differ, did the class move?

Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", CVPR 2023, section
4.1: subject fidelity is the mean cosine of features of drawn and real pictures (DINO, and CLIP-I), prompt fidelity that
of a picture's and its prompt's CLIP features (CLIP-T), the prompt with the class in the subject's place. Diversity is
the mean 1 − cosine among pictures of one prompt (the paper takes LPIPS). Prior drift is the mean 1 − cosine between what
run and base draw for the class prompt from the same noise, class likeness how alike the subject these are (the paper's
PRES). Drift is the same for prompts without the subject, as in huggingface/peft, method_comparison/image-gen. Every
figure stands between a ceiling and a floor, of real pictures, and beside the base's, which is asked for the class.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from diffusion_peft.control.options import is_control
from diffusion_peft.editing.options import is_edit
from diffusion_peft.evaluation import figures, gallery
from diffusion_peft.evaluation.asked import Evaluation, How
from diffusion_peft.evaluation.drawn import Asked, Drawer
from diffusion_peft.evaluation.scorers import ClipScorer, ImageScorer, open_scorers
from diffusion_peft.evaluation.subjects import (
    Subject,
    are_drawn,
    open_drift_prompts,
    open_prompts,
    others,
    real_pictures,
    subjects_of,
)
from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import RESULTS, RunFolder, read_run_config

ABOUT = "subjects × prompts: subject fidelity, prompt fidelity, diversity, drift"
OF_CLASS = 8
"""Pictures of the class prompt."""
SWEPT = 4
"""Prompts of the scale sweep."""
BASE = "base"
COLUMNS = [
    ("method", "method"),
    ("runs", "runs"),
    ("subject", "subject fidelity, {image}"),
    ("clip_i", "subject fidelity, CLIP-I"),
    ("clip_t", "prompt fidelity, CLIP-T"),
    ("prompt_accuracy", "right prompt of {prompts}"),
    ("diversity", "diversity"),
    ("prior_drift", "prior drift"),
    ("drift", "drift of other prompts"),
    ("class_likeness", "class likeness"),
    ("parameters", "parameters"),
    ("mebibytes", "MiB"),
    ("minutes", "minutes"),
]
MEASURED = [key for key, _ in COLUMNS[2:]]


def suits(config: dict[str, Any]) -> bool:
    fitted = str(config.get("command")) == "diffusion_peft fit"
    return fitted and not config.get("slider") and not is_control(config) and not is_edit(config)


class Asker:
    """Who is asked what: runs with their subjects, prompts, and the drawers of their pictures."""

    def __init__(self, runs: list[Path], out: Path, how: How) -> None:
        self.runs, self.how, self.root = runs, how, out / "pictures"
        self.configs = {run: read_run_config(run) for run in runs}
        self.subjects = {run: subjects_of(self.configs[run], run, how.subject, how.class_name) for run in runs}
        everybody = [each for found in self.subjects.values() for each in found]
        self.is_drawn = are_drawn(everybody)
        self.prompts = open_prompts(how.prompts, everybody)
        self.drift_prompts = open_drift_prompts(how.drift_prompts, everybody)
        self.bases: dict[str, Drawer] = {}

    def asked(self, words: str) -> list[Asked]:
        seeds = range(self.how.seed, self.how.seed + self.how.count)
        return [(prompt.format(words), seed) for prompt in self.prompts for seed in seeds]

    def of_class(self, subject: Subject) -> list[Asked]:
        return [(subject.class_prompt, self.how.seed + number) for number in range(OF_CLASS)]

    def without(self) -> list[Asked]:
        """What no subject is in."""
        return [(prompt, self.how.seed) for prompt in self.drift_prompts]

    def swept(self, words: str) -> list[Asked]:
        return [(prompt.format(words), self.how.seed) for prompt in self.prompts[:SWEPT]]

    def drawer(self, run: Path) -> Drawer:
        label = "-".join(run.absolute().parts[-3:])
        return Drawer(self.root, None, run, label, self.how.drawing, self.how.dtype)

    def base(self, run: Path) -> Drawer:
        name = self.configs[run]["base"]
        return self.bases.setdefault(name, Drawer(self.root, name, None, BASE, self.how.drawing, self.how.dtype))


def check(runs: list[Path], how: How) -> None:
    """Raises PeftError: a run that is not finished, or that taught no subject; prompts without a place for it; models that
    judge and cannot be had."""
    unfinished = [run for run in runs if not (run / RESULTS).is_file()]
    if unfinished:
        raise PeftError(
            f"{unfinished[0]} is not finished: give its `fit` command again, which goes on where it stopped."
        )
    open_scorers(how.image_features, how.clip, Asker(runs, Path(), how).is_drawn)


def draw(runs: list[Path], out: Path, how: How) -> None:
    """Draws what is missing of these runs' pictures; the bases' are left to `evaluate`."""
    asker = Asker(runs, out, how)
    for run in runs:
        drawer = asker.drawer(run)
        drawer.pictures(asker.without())
        for subject in asker.subjects[run]:
            drawer.pictures([*asker.asked(subject.words), *asker.of_class(subject)])
            for scale in how.scales if drawer.has_scale else ():
                drawer.pictures(asker.swept(subject.words), scale)


class Judge:
    """Features of a subject's real pictures, and the figures of pictures by them."""

    def __init__(self, asker: Asker, image: ImageScorer, clip: ClipScorer) -> None:
        self.asker, self.image, self.clip = asker, image, clip
        self.real: dict[str, tuple[Tensor, Tensor]] = {}

    def features(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Of its real pictures, by both models."""
        if subject.data not in self.real:
            pictures = real_pictures(subject).pictures
            self.real[subject.data] = (self.image.features(pictures), self.clip.features(pictures))
        return self.real[subject.data]

    def limits(self, subject: Subject) -> dict[str, Any]:
        """What real pictures score: of the subject itself (ceiling), of other subjects (floor)."""
        real = real_pictures(subject)
        everybody = [other for found in self.asker.subjects.values() for other in found]
        rest = [self.features(other) for other in others(subject, everybody)]
        found: dict[str, Any] = {"of": subject.data, "compared with": real.about}
        for place, key in enumerate(("subject", "clip_i")):
            mine = self.features(subject)[place]
            same = figures.pairs(mine)
            found[key] = {"ceiling": float(same.mean()) if len(same) else None}
            if rest:
                other = mine @ torch.cat([features[place] for features in rest]).T
                found[key] |= {"floor": float(other.mean()), "separation": figures.separation(same, other)}
        if real.captions:
            texts = list(dict.fromkeys(real.captions))
            right = torch.tensor([texts.index(caption) for caption in real.captions])
            found["clip_t"] = figures.prompt_fidelity(self.features(subject)[1], self.clip.texts(texts), right)
        return found

    def judge(
        self, subject: Subject, pictures: list[Image], of_class: list[Image], before: list[Image] | None
    ) -> dict[str, Any]:
        """The figures of pictures of all prompts and seeds, and of the class prompt (`before`: the base's; None for
        itself)."""
        count = self.asker.how.count
        image, clip = self.image.features(pictures), self.clip.features(pictures)
        ours, theirs = self.features(subject)
        right = torch.arange(len(pictures)) // count
        texts = self.clip.texts([prompt.format(subject.class_words) for prompt in self.asker.prompts])
        now = self.image.features(of_class)
        found: dict[str, float | None] = {
            "subject": figures.likeness(image, ours),
            "clip_i": figures.likeness(clip, theirs),
        }
        found |= figures.prompt_fidelity(clip, texts, right)
        found["diversity"] = figures.diversity(list(image.split(count)))
        found["prior_drift"] = None if before is None else figures.drift(now, self.image.features(before))
        found["class_likeness"] = figures.likeness(now, ours)
        return found

    def drift(self, now: list[Image], before: list[Image]) -> float:
        return figures.drift(self.image.features(now), self.image.features(before))

    def sweep(self, subject: Subject, drawer: Drawer) -> list[dict[str, Any]]:
        """Subject and prompt fidelity at each scale, and the pictures."""
        asked = self.asker.swept(subject.words)
        texts = self.clip.texts([prompt.format(subject.class_words) for prompt in self.asker.prompts[:SWEPT]])
        rows = []
        for scale in self.asker.how.scales if drawer.has_scale else ():
            pictures = drawer.pictures(asked, scale)
            clip = self.clip.features(pictures)
            found = figures.prompt_fidelity(clip, texts, torch.arange(len(asked)))
            likeness = figures.likeness(self.image.features(pictures), self.features(subject)[0])
            rows.append(
                {"scale": scale, "subject": likeness, "clip_t": found["clip_t"], "pictures": gallery.small(pictures)}
            )
        return rows


def evaluate(runs: list[Path], out: Path, how: How) -> Evaluation:
    """Draws, judges, and shows."""
    asker = Asker(runs, out, how)
    image, clip = open_scorers(how.image_features, how.clip, asker.is_drawn)
    judge = Judge(asker, image, clip)
    names = dict(zip(runs, how.labels or [asker.configs[run]["method"]["name"] for run in runs], strict=True))
    rows, shown, limits, of_base = [], [], {}, {}
    for run in runs:
        results, drawer, base = RunFolder(run, "").results(), asker.drawer(run), asker.base(run)
        moved = {"drift": judge.drift(drawer.pictures(asker.without()), base.pictures(asker.without()))}
        for subject in asker.subjects[run]:
            if subject.data not in limits:
                limits[subject.data] = judge.limits(subject)
            before = base.pictures(asker.of_class(subject))
            plain = base.pictures(asker.asked(subject.class_words))
            key = (base.base, subject.data, subject.class_words)
            if key not in of_base:
                of_base[key] = judge.judge(subject, plain, before, None)
            pictures, of_class = drawer.pictures(asker.asked(subject.words)), drawer.pictures(asker.of_class(subject))
            row = (
                {"method": names[run]} | about(run, results) | moved | judge.judge(subject, pictures, of_class, before)
            )
            rows.append(row | {"of": subject.data})
            first, second, third, last = (gallery.small(each) for each in (pictures, plain, of_class, before))
            shown.append(gallery.Shown(str(run), subject, first, second, third, last, judge.sweep(subject, drawer)))
    base_rows = [{"method": BASE, "base": base, "of": data} | row for (base, data, _), row in of_base.items()]
    columns = [(key, title.format(image=image.name, prompts=len(asker.prompts))) for key, title in COLUMNS]
    facts = {
        "image_features": image.name, "clip": clip.name, "prompts": list(asker.prompts), "pictures a prompt": how.count,
        "drift prompts": list(asker.drift_prompts),
        "class pictures": OF_CLASS, "seed": how.seed, "drawing": how.drawing.said(),
        "real": list(limits.values()),
        "scale_sweeps": [{"run": each.run, "subject": each.subject.data,
                          "scales": [{k: v for k, v in row.items() if k != "pictures"} for row in each.sweep]}
                         for each in shown if each.sweep],
    }  # fmt: skip
    summary = figures.summarise([*base_rows, *rows], "method", MEASURED)
    for name in ("ceiling", "floor"):
        summary.append(limit_row(name, list(limits.values())))
    return Evaluation(headline(summary, image.name, clip.name), [*base_rows, *rows], summary, columns, facts,
                      gallery.sections(shown, facts, asker.prompts, how))  # fmt: skip


def about(run: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What a run cost."""
    return {
        "run": str(run), "base": results["base"], "training_seed": results["seed"],
        "steps": results["steps"], "loss": results["loss"], "parameters": results["parameters"]["inserted"],
        "mebibytes": results["adapter_bytes"] / 2**20, "minutes": results["seconds"]["train"] / 60,
    }  # fmt: skip


def limit_row(name: str, limits: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table with what real pictures score."""
    row: dict[str, Any] = {"method": f"real pictures, {'the subject' if name == 'ceiling' else 'other subjects'}"}
    for key in ("subject", "clip_i"):
        values = [each[key][name] for each in limits if each[key].get(name) is not None]
        row[key] = fmean(values) if values else None
    texts = [each["clip_t"]["clip_t" if name == "ceiling" else "clip_t_wrong"] for each in limits if "clip_t" in each]
    row["clip_t"] = fmean(texts) if texts else None
    return row


def headline(summary: list[dict[str, Any]], image: str, clip: str) -> str:
    best = max((row for row in summary if row.get("runs") and row["method"] != BASE), key=lambda row: row["subject"])
    base = next(row for row in summary if row["method"] == BASE)
    return (
        f"{best['method']} is most like its subject: {best['subject']:.3f} (base {base['subject']:.3f}), prompts "
        f"{best['clip_t']:.3f} (base {base['clip_t']:.3f}); features {image}, CLIP {clip}"
    )
