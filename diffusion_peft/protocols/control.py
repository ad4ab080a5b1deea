"""Held-out conditions: does what is drawn obey them, and the caption still?

As ControlNet++ (Li et al., ECCV 2024) asks: the condition is found again in the drawn picture and compared with the one
that was given. On the drawn world by its own detector (`diffusion_peft.evaluation.watcher`): F1 and SSIM of outlines, mean
IoU of shapes and of things against the ground, RMSE of nearness, AP at IoU 0.5 of boxes with their shape. On other data by
computing the condition of the drawn picture. Similarity to the condition's own picture is the cosine of image features.
Captions by CLIP. The base without control, from the same noise, is chance; the real pictures are the ceiling. Pictures as
prompts are asked without any words too, as IP-Adapter's authors measure them: only then must what is seen come from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffusion_peft.control.data import Grounded, Pair, open_pairs
from diffusion_peft.control.grids import as_shown
from diffusion_peft.control.inputs import as_picture
from diffusion_peft.control.options import ControlOptions, is_control
from diffusion_peft.evaluation import figures, gallery
from diffusion_peft.evaluation.asked import Evaluation, How
from diffusion_peft.evaluation.conditioned import ConditionDrawer
from diffusion_peft.evaluation.drawn import Asked, Drawer
from diffusion_peft.evaluation.obedience import edge_f1, rmse, ssim, world_figures
from diffusion_peft.evaluation.scorers import open_scorers
from peft_core.errors import PeftError
from peft_core.jobs.reports import page as report
from peft_core.jobs.runs.folder import RESULTS, RunFolder, read_run_config

ABOUT = "held-out conditions: edges, masks, depth, boxes, similarity, beside the base without control and real pictures"
CONDITIONS = 24
"""Held-out conditions, with `count` pictures each."""
SHOWN = 12
"""Conditions of which the report shows pictures."""
MARGIN = 0.05
"""By how much the share of pictures that their own caption fits best may fall below the base's."""
BASE, REAL = "base, no control (chance)", "real pictures (ceiling)"
WORDLESS = ", no words"
TELLING = {"mask": "miou", "box": "box_ap", "picture": "similarity"}
"""The measure that a condition fixes most directly, where it is not the first one there is."""
COLUMNS = [
    ("method", "method"), ("runs", "runs"), ("edge_f1", "edge F1"), ("edge_ssim", "edge SSIM"), ("miou", "shape mIoU"),
    ("thing_iou", "thing mIoU"), ("depth_rmse", "depth RMSE"), ("box_ap", "box AP 50"), ("similarity", "similarity, {image}"),
    ("clip_t", "CLIP-T"), ("prompt_accuracy", "right caption of {captions}"), ("parameters", "parameters"),
    ("mebibytes", "MiB"), ("step_seconds", "seconds a step"),
    ("extra_seconds", "extra seconds a picture"),
]  # fmt: skip
MEASURED = [key for key, _ in COLUMNS[2:]]


def suits(config: dict[str, Any]) -> bool:
    return str(config.get("command")) == "diffusion_peft fit" and is_control(config)


@dataclass
class Held:
    """Held-out pairs of a data set, and what is asked about them."""

    kind: str
    pairs: list[Pair]
    asked: list[Asked]
    """(caption, seed), `count` for each pair."""
    truth: Any
    """Layers of the drawn world; None elsewhere."""

    @property
    def ways(self) -> dict[str, list[Asked]]:
        """What is asked, by what it adds to a row's name."""
        wordless = {WORDLESS: [("", seed) for _, seed in self.asked]} if self.kind == "picture" else {}
        return {"": self.asked} | wordless


def held_out(config: dict[str, Any], how: How) -> Held:
    """The pairs that a run was not trained on.

    Raises:
        PeftError: too few of them.
    """
    data, options = str(config["data"]), ControlOptions("", config.get("control") or {}).all()
    if data.startswith("world/"):
        from peft_data.world.control import draw_pairs

        kind, pairs = open_pairs(data, options, "test")
        pairs, truth = pairs[:CONDITIONS], draw_pairs(kind, CONDITIONS, "test")
    else:
        from diffusion_peft.control.examples import HELD_OUT, SHOWN

        kind, pairs = open_pairs(data, options)
        if len(pairs) < HELD_OUT:
            raise PeftError(
                f"{data} has {len(pairs)} pairs, all of which were trained on: evaluate needs {HELD_OUT} or more."
            )
        if kind in ("mask", "box", "pose"):
            raise PeftError(
                f"whether a {kind} is obeyed is told by the drawn world's detector: data of world/control/ only."
            )
        pairs, truth = pairs[-SHOWN:], None
    texts = [config.get("prompt") or str(pair.picture.caption) for pair in pairs]
    asked = [(text, how.seed + number * how.count + k) for number, text in enumerate(texts) for k in range(how.count)]
    return Held(kind, pairs, asked, truth)


def drawers(runs: Sequence[Path], out: Path, how: How) -> dict[Path, tuple[Held, ConditionDrawer]]:
    found = {}
    for run in runs:
        held = held_out(read_run_config(run), how)
        label = "-".join(run.absolute().parts[-3:])
        drawer = ConditionDrawer(out / "pictures", None, run, label, how.drawing, how.dtype)
        kinds = [p.condition if isinstance(p.condition, Grounded) else as_picture(p, held.kind) for p in held.pairs]
        each = [condition for condition in kinds for _ in range(how.count)]
        drawer.given = {key: given for asked in held.ways.values() for key, given in zip(asked, each, strict=True)}
        found[run] = held, drawer
    return found


def check(runs: list[Path], how: How) -> None:
    """Raises PeftError: a run that is not finished or whose conditions nobody can judge; models that cannot be had."""
    for run in runs:
        if not (run / RESULTS).is_file():
            raise PeftError(f"{run} is not finished: give its `fit` command again, which goes on where it stopped.")
    held = [held_out(read_run_config(run), how) for run in runs]
    open_scorers(how.image_features, how.clip, all(each.truth is not None for each in held))


def draw(runs: list[Path], out: Path, how: How) -> None:
    for held, drawer in drawers(runs, out, how).values():
        for asked in held.ways.values():
            drawer.pictures(asked)


def evaluate(runs: list[Path], out: Path, how: How) -> Evaluation:
    """Draws, judges, and shows."""
    asked = drawers(runs, out, how)
    drawn_data = all(held.truth is not None for held, _ in asked.values())
    image, clip = open_scorers(how.image_features, how.clip, drawn_data)
    rows: dict[Any, dict[str, Any]] = {}
    lines: dict[str, list[tuple[str, Sequence[Image.Image]]]] = {}
    sections = []
    for number, run in enumerate(runs):
        held, drawer = asked[run]
        config, results = read_run_config(run), RunFolder(run, "").results()
        judge = judge_of(held, how.count, image, clip)
        base = Drawer(out / "pictures", config["base"], None, "base", how.drawing, how.dtype)
        plain = {way: base.pictures(texts) for way, texts in held.ways.items()}
        real = [pair.picture.read() for pair in held.pairs for _ in range(how.count)]
        about = {"condition": held.kind}
        name = how.labels[number] if how.labels else name_of(config["method"], held.kind)
        cost = {
            "run": str(run), "seed": results["seed"], "steps": results["steps"], "mebibytes": results["adapter_bytes"] / 2**20,
            "parameters": results["parameters"]["inserted"], "step_seconds": results["seconds"]["train"] / results["steps"],
        }  # fmt: skip
        cost["extra_seconds"] = drawer.extra_seconds(held.asked[:2])
        there = lines.setdefault(f"{config['data']} on {config['base']}", around(held, plain, real, how))
        limits = {BASE + way: pictures for way, pictures in plain.items()} | {REAL: real}
        for title, pictures in limits.items():  # the same for all conditions of the drawn world: then one row
            if (key := (title, config["base"], tuple(held.asked))) not in rows:
                rows[key] = {"method": title} | about | judge(pictures)
        for way, texts in held.ways.items():
            pictures = drawer.pictures(texts)
            rows[run, way] = {"method": name + way} | about | cost | judge(pictures)
            there.insert(-1 - len(plain), (f"{name}{way}, {run.name}", gallery.small(pictures[:: how.count][:SHOWN])))
            sections.append(
                (f"{run}{way}: condition, drawn, base, real", shown(held, texts, pictures, plain[way], how))
            )
    summary = figures.summarise(rows.values(), "method", MEASURED)
    columns = [(key, title.format(image=image.name, captions=CONDITIONS)) for key, title in COLUMNS]
    facts = {
        "image_features": image.name, "clip": clip.name, "conditions": CONDITIONS, "pictures a condition": how.count,
        "seed": how.seed, "steps of a picture": how.drawing.steps, "guidance": how.drawing.said()["guidance"],
        "caption margin": MARGIN,
    }  # fmt: skip
    used = [
        (key, title)
        for key, title in columns
        if key in ("method", "runs") or any(r.get(key) is not None for r in summary)
    ]
    overviews = [(data, gallery.lines_of(there)) for data, there in lines.items()]
    first = headline(summary, {held.kind for held, _ in asked.values()})
    return Evaluation(first, list(rows.values()), summary, used, facts, overviews + sections)


def name_of(method: dict[str, Any], kind: str) -> str:
    """What tells methods apart in the table."""
    kinds = [word for word, there in (("plus", method.get("plus")), ("norm", method.get("join") == "norm")) if there]
    return ", ".join([method["name"], *kinds, kind])


def judge_of(held: Held, count: int, image: Any, clip: Any) -> Callable[[Sequence[Image.Image]], dict[str, Any]]:
    """Pictures of all pairs, `count` each, to figures."""
    real = image.features([pair.picture.read() for pair in held.pairs]).repeat_interleave(count, 0)
    texts = list(dict.fromkeys(text for text, _ in held.asked))
    features, right = clip.texts(texts), torch.tensor([texts.index(text) for text, _ in held.asked])
    obeys = of_world(held, count) if held.truth is not None else of_files(held, count)

    def judge(pictures: Sequence[Image.Image]) -> dict[str, Any]:
        found = obeys(pictures)
        found["similarity"] = float((image.features(pictures) * real).sum(1).mean())
        return found | figures.prompt_fidelity(clip.features(pictures), features, right)

    return judge


def of_world(held: Held, count: int) -> Callable[[Sequence[Image.Image]], dict[str, Any]]:
    from peft_data.pictures import Fit
    from peft_data.world.captioned import SHAPES

    from diffusion_peft.evaluation.watcher import load_watcher

    watcher, truth = load_watcher(), held.truth
    layers = [t.repeat_interleave(count, 0) for t in (truth.classes, truth.nearness, truth.outlines)]
    boxes = [
        [(box, 1 + SHAPES.index(phrase.split(" ", 1)[1])) for box, phrase in zip(*each, strict=True)]
        for each in zip(truth.boxes, truth.phrases, strict=True)
        for _ in range(count)
    ]
    fit = Fit(tuple(truth.pictures.shape[-2:]), "squash")  # type: ignore[arg-type]

    def judge(pictures: Sequence[Image.Image]) -> dict[str, Any]:
        pixels = torch.stack([torch.from_numpy(fit.picture(picture.convert("RGB")).copy()) for picture in pictures])
        return world_figures(watcher.see(pixels), layers[0], layers[1], layers[2], boxes)

    return judge


def of_files(held: Held, count: int) -> Callable[[Sequence[Image.Image]], dict[str, Any]]:
    from torchvision.transforms.v2.functional import pil_to_tensor

    def grey(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        return pil_to_tensor(picture.convert("L").resize(size))[0].float() / 255

    def judge(pictures: Sequence[Image.Image]) -> dict[str, Any]:
        if held.kind == "picture":
            return {}
        size = pictures[0].size
        said = [grey(as_picture(_alone(picture), held.kind), size) for picture in pictures]
        true = [grey(as_picture(pair, held.kind), size) for pair in held.pairs for _ in range(count)]
        one, other = torch.stack(said), torch.stack(true)
        if held.kind in ("canny", "scribble"):
            return {"edge_f1": edge_f1(one > 0.5, other > 0.5), "edge_ssim": ssim(one, other)}
        return {"depth_rmse" if held.kind == "depth" else "rmse": rmse(one, other)}

    return judge


def _alone(picture: Image.Image) -> Pair:
    from diffusion_peft.data.pictures import Picture

    return Pair(Picture(picture, None, "drawn", picture.height, picture.width), None)


def around(
    held: Held, plain: Mapping[str, Sequence[Image.Image]], real: Sequence[Image.Image], how: How
) -> list[tuple[str, Sequence[Image.Image]]]:
    """What stands above and below the runs' pictures in the overview: conditions; the base's pictures, and real ones."""
    rows = [("condition", [as_shown(pair, plain[""][0].size) for pair in held.pairs[:SHOWN]])]
    rows += [(name, pictures[:: how.count][:SHOWN])
             for name, pictures in [*((f"base{way}", each) for way, each in plain.items()), ("real", real)]]  # fmt: skip
    return [(name, gallery.small(pictures)) for name, pictures in rows]


def shown(
    held: Held, asked: Sequence[Asked], pictures: Sequence[Image.Image], plain: Sequence[Image.Image], how: How
) -> str:
    cells = []
    for number, pair in enumerate(held.pairs[:SHOWN]):
        start, text = number * how.count, asked[number * how.count][0]
        cells.append((as_shown(pair, pictures[start].size), text, False))
        cells += [(picture, f"seed {asked[start + k][1]}", False)
                  for k, picture in enumerate(pictures[start : start + min(how.count, 2)])]  # fmt: skip
        cells += [(plain[start], "base", False), (pair.picture.read(), "real", False)]
    return report.picture_grid(cells)


def headline(summary: list[dict[str, Any]], kinds: set[str]) -> str:
    """The best run's figure on the measure that tells most, and whether captions suffered."""
    known = [key for key in ("edge_f1", "thing_iou", "similarity") if summary[0].get(key) is not None]
    key = TELLING.get(next(iter(kinds)), known[0]) if len(kinds) == 1 else known[0]
    way = WORDLESS if kinds == {"picture"} else ""
    limits = {row["method"]: row for row in summary if row["method"] in (BASE, BASE + WORDLESS, REAL)}
    mine = [row for row in summary if row["method"] not in limits]
    worded = [row for row in mine if not row["method"].endswith(WORDLESS)]
    silent = [row for row in mine if row["method"].endswith(WORDLESS)]
    base, best = limits[BASE], max(silent if way else worded, key=lambda row: row[key])
    title = dict(COLUMNS)[key].split(",")[0]
    fallen = [
        row["method"] for row in worded if (row["prompt_accuracy"] or 0) < (base["prompt_accuracy"] or 0) - MARGIN
    ]
    words = (
        f"captions fall by more than {MARGIN} in {', '.join(fallen)}"
        if fallen
        else f"captions fall by at most {MARGIN}"
    )
    return f"{best['method']} obeys most: {title} {best[key]:.3f} (base {limits[BASE + way][key]:.3f}); {words}"
