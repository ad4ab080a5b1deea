"""Captioned pictures for generative training: one or two clear things on a ground, said in plain English.

The words stand for what can be seen at 64 pixels. What is drawn comes from a `Scene`, so masks, edges, depth and boxes
of the same picture are those of `peft_data.world.render`. No picture is shared with the tasks or with pretraining (the
draws have another key), and six shapes and seven textures are never drawn here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from .draw import Draw, apart
from .render import render, screen
from .scene import BACKGROUNDS, Scene, make_scene
from .shapes import shape_ids
from .textures import TEXTURES

BLOCK = 500
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "plus",
    "half moon",
    "gear",
    "leaf",
    "bar",
    "heart",
    "drop",
    "hourglass",
)
COLOURS = {
    "red": (0.86, 0.12, 0.12), "orange": (0.97, 0.52, 0.07), "yellow": (0.97, 0.86, 0.12), "green": (0.14, 0.62, 0.20),
    "teal": (0.06, 0.68, 0.68), "blue": (0.13, 0.30, 0.86), "purple": (0.50, 0.14, 0.72), "pink": (0.97, 0.52, 0.75),
    "black": (0.06, 0.06, 0.06), "white": (0.96, 0.96, 0.96),
}  # fmt: skip
TEXTURE_WORDS = {"plain": "plain", "stripes": "striped", "checks": "chequered", "dots": "dotted", "rings": "ringed"}
SIZES = {"small": (0.24, 0.30), "medium": (0.37, 0.45), "large": (0.56, 0.68)}
"""Radius in canvas units (the picture is 2 wide)."""
GROUNDS = {
    "plain": "plain",
    "gradient": "shaded",
    "clouds": "cloudy",
    "stripes": "striped",
    "checks": "chequered",
    "hall": "room",
}
PLACES = tuple(f"{row} {column}".strip() for row in ("top", "", "bottom") for column in ("left", "", "right"))
THING = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "texture": len(TEXTURE_WORDS),
    "size": len(SIZES),
    "place": len(PLACES),
}
LABELS = THING | {"ground": len(GROUNDS), "ground colour": len(COLOURS)} | {f"second {k}": v for k, v in THING.items()}
"""What is known about a picture, and the number of values of each; `second …` is -1 where there is one thing only."""
OPENINGS = ("a photo of ", "a picture of ", "a drawing of ", "an image of ")
_KNOWN = tuple(LABELS)


def _shade(draw: Draw, colour: torch.Tensor, gap: float) -> torch.Tensor:
    """A lighter or darker colour of the same hue."""
    lighter = draw.chance(*colour.shape[:-1], 1, p=0.5)
    return apart(colour, torch.where(lighter, 1 - (1 - colour) * 0.5, colour * 0.5), gap)


def _colour(draw: Draw, index: torch.Tensor) -> torch.Tensor:
    rgb = torch.tensor(list(COLOURS.values()))[index]
    near = draw.uniform(*index.shape, 1, low=-0.03, high=0.03)
    return (rgb * draw.uniform(*index.shape, 1, low=0.9, high=1.04) + near).clamp(0, 1)


def _other(draw: Draw, taken: torch.Tensor, among: int) -> torch.Tensor:
    """Indices below `among`, each other than the one that is taken."""
    return (taken + 1 + draw.ints(*taken.shape, high=among - 1)) % among


def draw_scenes(draw: Draw, n: int) -> tuple[Scene, torch.Tensor]:
    """N scenes of one thing or two, and their labels, int64 N len(LABELS)."""
    two = draw.chance(n, p=0.22)
    shape = torch.stack((draw.labels(n, len(SHAPES)), draw.ints(n, high=len(SHAPES))), 1)
    ground_colour = draw.labels(n, len(COLOURS))
    colour = _other(draw, ground_colour[:, None].expand(n, 2), len(COLOURS))
    texture = draw.ints(n, 2, high=len(TEXTURE_WORDS)) * draw.chance(n, 2, p=0.75)
    size = torch.stack((draw.ints(n, high=3), draw.ints(n, high=3) * 0), 1)
    size[:, 0] = torch.where(two & (size[:, 0] == 2), 1, size[:, 0])
    low, high = torch.tensor(list(SIZES.values())).unbind(1)
    radius = low[size] + draw.uniform(n, 2) * (high - low)[size]
    radius = torch.where(radius[:, :1] < radius, radius[:, :1], radius) * torch.tensor([1.0, 0.98])

    kind = draw.choose(n, among=(0, 0, 0, 1, 2, 3, 4, 5))
    hall = kind == 5
    free = (0.92 - radius).clamp(min=0)
    x, y = draw.uniform(2, n, 2, low=-1) * free
    x[:, 0], y[:, 0] = torch.where(two, x[:, 0], 0.75 * x[:, 0]), torch.where(two, y[:, 0], 0.75 * y[:, 0])
    side = torch.where(draw.chance(n, p=0.5), 1.0, -1.0)  # two things stand on the two sides of a line
    apart_x = torch.stack((side, -side), 1) * (0.1 + radius + draw.uniform(n, 2) * (0.82 - 2 * radius).clamp(min=0))
    upright = (draw.chance(n, p=0.35) & ~hall)[:, None]
    x, y = (
        torch.where(two[:, None], torch.where(upright, x * 0.8, apart_x), x),
        torch.where(two[:, None] & upright, apart_x, y),
    )
    z = torch.where(hall[:, None], draw.uniform(n, 2, low=1.25, high=1.7), 1.0 + torch.arange(2) * 0.5)
    deep = torch.where(hall[:, None], z, 1.0)
    horizon = torch.where(hall, draw.uniform(n, low=-0.25, high=0.1), float("nan"))

    rgb, ground = _colour(draw, colour), _colour(draw, ground_colour)
    grounds = torch.tensor([BACKGROUNDS.index(name) for name in GROUNDS])
    grain = torch.where(size == 0, draw.uniform(n, 2, low=2.0, high=2.4), draw.uniform(n, 2, low=2.6, high=3.4))
    gap = torch.where(kind == 0, 0.06, 0.24)[:, None]
    scene = make_scene(
        draw.seeds(n), 2, present=torch.stack((torch.ones_like(two), two), 1),
        shape=torch.tensor(shape_ids(*SHAPES))[shape],
        texture=torch.tensor([TEXTURES.index(name) for name in TEXTURE_WORDS])[texture],
        colour=rgb, colour2=_shade(draw, rgb, 0.3), grain=grain, size=radius * deep,
        aspect=draw.uniform(n, 2, low=0.9, high=1.1), angle=draw.uniform(n, 2, low=-0.35, high=0.35),
        x=x * deep, y=torch.where(hall[:, None], torch.zeros(()), y), z=z, background=grounds[kind], ground=ground,
        ground2=ground + (_shade(draw, ground, 0.24) - ground) * (gap / 0.24),
        ground_grain=draw.uniform(n, low=1.6, high=2.4),
        light=torch.cat((draw.uniform(n, 2, low=-1), draw.uniform(n, 1, high=0.2)), 1),
        camera=torch.stack((torch.ones(n), torch.zeros(n), torch.zeros(n), horizon), 1),
    )  # fmt: skip
    centre_x, centre_y, _ = screen(scene)
    place = 3 * torch.bucketize(centre_y, torch.tensor([-0.25, 0.25])) + torch.bucketize(
        centre_x, torch.tensor([-0.25, 0.25])
    )
    things = torch.stack((shape, colour, texture, size, place), 2)
    second = torch.where(two[:, None], things[:, 1], -1)
    return scene, torch.cat((things[:, 0], kind[:, None], ground_colour[:, None], second), 1)


def captioned_block(
    block: int, split: str = "train", seed: int = 0, size: int = 64, n: int = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 N 3 S S of one block, and their labels (`LABELS`) int64 N K.

    Args:
        block: blocks do not depend on each other.
        split: any word; different splits share no picture.
        seed: another seed gives other pictures.
        size: height and width S.
        n: how many.
    """
    scene, labels = draw_scenes(Draw("captioned", split, seed, block), n)
    return render(scene, size).uint8, labels


def _a(words: Sequence[str]) -> str:
    text = " ".join(word for word in words if word)
    return ("an " if text[0] in "aeiou" else "a ") + text


def _thing(of: dict[str, int], prefix: str, say: dict[str, bool], place: bool) -> str:
    size, texture = tuple(SIZES)[of[prefix + "size"]], tuple(TEXTURE_WORDS.values())[of[prefix + "texture"]]
    words = [
        size if say["size"] and (size != "medium" or say["plain"]) else "",
        tuple(COLOURS)[of[prefix + "colour"]] if say["colour"] else "",
        texture if say["texture"] and (texture != "plain" or say["plain"]) else "",
        SHAPES[of[prefix + "shape"]] if say["shape"] else "thing",
    ]
    where = PLACES[of[prefix + "place"]]
    return _a(words) + (f" at the {where}" if place and where else "")


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 6)))


def caption(labels: Sequence[int] | torch.Tensor, rng: random.Random | None = None) -> str:
    """One picture's labels in words, for example "a large red striped star on a blue background".

    Args:
        labels: the values of `LABELS`; -1 for `second …` where there is one thing.
        rng: leaves words out at random, varies the sentence, and now and then adds a word without a meaning, so that a
            model learns short prompts and takes unknown words calmly; None says everything but places.
    """
    of = dict(zip(_KNOWN, map(int, labels), strict=True))
    names = ("size", "colour", "texture", "shape", "ground", "ground kind", "ground colour")
    say = dict.fromkeys(names, True) | {"plain": False, "place": False}
    opening, odd = "", ""
    if rng is not None:
        if rng.random() < 0.55:
            say = {name: rng.random() < (0.93 if name == "shape" else 0.8) for name in names}
        say |= {"plain": rng.random() < 0.15, "place": rng.random() < 0.3}
        opening = rng.choice(OPENINGS) if rng.random() < 0.3 else ""
        odd = _made_up(rng) if rng.random() < 0.06 else ""
    things = [_thing(of, "", say, say["place"])]
    if of["second shape"] >= 0:
        things.append(_thing(of, "second ", say, say["place"]))
    if odd:
        article, rest = things[0].split(" ", 1)
        things[0] = _a([odd, rest])
    text = opening + " and ".join(things)
    kind, colour = tuple(GROUNDS.values())[of["ground"]], tuple(COLOURS)[of["ground colour"]]
    if say["ground"] and kind == "room":
        text += " in " + _a([colour if say["ground colour"] else "", "room"])
    elif say["ground"] and (say["ground colour"] or (say["ground kind"] and (kind != "plain" or say["plain"]))):
        words = [
            kind if say["ground kind"] and (kind != "plain" or say["plain"]) else "",
            colour if say["ground colour"] else "",
            "background",
        ]
        text += " on " + _a(words)
    return text


def words() -> tuple[str, ...]:
    """Every word with a meaning that a caption can have, in a fixed order."""
    groups = (
        SHAPES,
        COLOURS,
        TEXTURE_WORDS.values(),
        SIZES,
        GROUNDS.values(),
        PLACES,
        OPENINGS,
        ("a an and at background image in of on the thing",),
    )
    return tuple(dict.fromkeys(word for group in groups for text in group for word in text.split()))
