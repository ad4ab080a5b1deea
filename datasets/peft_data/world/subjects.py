"""Subjects: ten particular odd things, each in a few scenes, for teaching a generative model something new.

Every subject is put together from parts whose outlines, textures or colours are not those of the captioned pictures
(`peft_data.world.captioned`), so a model trained on these has never seen it. Grounds are of the kinds it knows.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from peft_data.errors import DataError

from .captioned import COLOURS, GROUNDS
from .draw import Draw, apart
from .render import render
from .scene import BACKGROUNDS, Scene, make_scene
from .shapes import SHAPES
from .textures import TEXTURES

CLASS_NOUN = "thing"
_FLAT = ("plain", "gradient", "clouds", "stripes", "checks")


@dataclass(frozen=True)
class Part:
    """A part of a subject: outline, texture, its two colours (RGB), and where it sits.

    Attributes:
        x, y: centre relative to the subject's, in the subject's radius.
        size: radius relative to the subject's.
        angle: radians, clockwise. aspect: width over height. grain: repeats of the texture.
    """

    shape: str
    texture: str
    colour: tuple[float, float, float]
    colour2: tuple[float, float, float]
    x: float = 0.0
    y: float = 0.0
    size: float = 1.0
    angle: float = 0.0
    aspect: float = 1.0
    grain: float = 3.0


CREAM, BROWN, OLIVE, MAROON = (0.98, 0.9, 0.72), (0.45, 0.26, 0.1), (0.5, 0.52, 0.1), (0.45, 0.05, 0.2)
SKY, NAVY, LIME, CORAL = (0.55, 0.8, 0.98), (0.08, 0.1, 0.4), (0.7, 0.95, 0.2), (0.98, 0.45, 0.35)
VIOLET, SLATE, MINT, GOLD = (0.68, 0.55, 0.95), (0.36, 0.42, 0.5), (0.6, 0.95, 0.75), (0.85, 0.65, 0.15)

PARTS: tuple[tuple[Part, ...], ...] = (  # the first part lies lowest
    (Part("bell", "mesh", CREAM, MAROON), Part("circle", "rings", SKY, NAVY, 0.0, -0.85, 0.42)),
    (Part("rosette", "plain", CORAL, CORAL), Part("hexagon", "cracks", LIME, BROWN, size=0.55, grain=4)),
    (Part("drop", "scales", MINT, NAVY), Part("circle", "plain", CREAM, CREAM, 0.0, 0.25, 0.36),
     Part("circle", "plain", NAVY, NAVY, 0.08, 0.25, 0.18)),
    (Part("bar", "bricks", GOLD, MAROON, 0.0, 0.55, 0.85), Part("kite", "zigzag", VIOLET, CREAM, 0.0, -0.35, 0.75)),
    (Part("kite", "blotches", LIME, OLIVE, -0.85, 0.0, 0.5, -1.5708),
     Part("hexagon", "scales", LIME, MAROON, 0.1, 0.0, 0.9, aspect=1.4), Part("circle", "plain", NAVY, NAVY, 0.7, -0.2, 0.16)),
    (Part("hexagon", "zigzag", SLATE, CREAM), Part("triangle", "plain", CORAL, CORAL, -0.75, -0.75, 0.4, -0.6),
     Part("triangle", "plain", CORAL, CORAL, 0.75, -0.75, 0.4, 0.6)),
    (Part("kite", "grain", BROWN, GOLD, 0.0, 0.1, 1.0, 3.1416), Part("rosette", "dots", SKY, MAROON, 0.0, -0.45, 0.5)),
    (Part("bar", "plain", SLATE, SLATE, 0.0, 0.3, 0.9, 1.5708), Part("rosette", "scales", VIOLET, OLIVE, 0, -0.5, 0.7)),
    (Part("bell", "cracks", OLIVE, CREAM, 0.0, 0.0, 1.0, 3.1416), Part("drop", "plain", CORAL, CORAL, 0, -0.75, 0.42)),
    (Part("hexagon", "mesh", NAVY, LIME, -0.4, 0.0, 0.65), Part("kite", "plain", GOLD, GOLD, 0.55, 0.1, 0.6, 0.5)),
)  # fmt: skip
NAMES = {f"world/subjects/{n}": "a particular odd thing in five scenes, for personalising" for n in range(len(PARTS))}


@dataclass(frozen=True)
class Subject:
    """One subject's pictures.

    Attributes:
        pictures: uint8 N 3 S S; masks: bool N S S, true on the subject; scene: what they were drawn from.
        grounds: N phrases that say where it is, for example "on a striped blue background".
    """

    pictures: torch.Tensor
    masks: torch.Tensor
    scene: Scene
    grounds: tuple[str, ...]

    def captions(self, name: str = f"a {CLASS_NOUN}") -> list[str]:
        """One caption a picture, the subject called `name` ("sks thing" gives "a photo of sks thing on a …")."""
        return [f"a photo of {name} {ground}" for ground in self.grounds]


def _place(parts: tuple[Part, ...], draw: Draw, n: int) -> dict[str, torch.Tensor]:
    """The fields of a scene that say where the parts are, as one rigid group."""

    def of(name: str) -> torch.Tensor:
        return torch.tensor([float(getattr(part, name)) for part in parts])[None]

    radius, turn = draw.uniform(n, 1, low=0.36, high=0.5), draw.uniform(n, 1, low=-0.3, high=0.3)
    middle = draw.uniform(2, n, 1, low=-0.25, high=0.25)
    return {
        "x": middle[0] + radius * (of("x") * turn.cos() - of("y") * turn.sin()),
        "y": middle[1] + radius * (of("x") * turn.sin() + of("y") * turn.cos()),
        "size": radius * of("size"), "angle": turn + of("angle"), "aspect": of("aspect").expand(n, -1),
        "grain": of("grain").expand(n, -1), "z": (2 - 0.1 * torch.arange(len(parts)))[None].expand(n, -1),
    }  # fmt: skip


def draw_subject(number: int, count: int = 5, split: str = "train", size: int = 64) -> Subject:
    """A subject in scenes that differ in ground, place, size, turn and light.

    Args:
        number: which subject.
        count: how many pictures.
        split: any word; another one gives other scenes.
        size: height and width in pixels.

    Raises:
        DataError: there is no such subject.
    """
    if not 0 <= number < len(PARTS):
        raise DataError(f"there is no subject {number}: world/subjects/0 to world/subjects/{len(PARTS) - 1} are drawn")
    parts, draw = PARTS[number], Draw("subjects", split, number)
    kind, colour = draw.labels(count, len(_FLAT)), draw.labels(count, len(COLOURS))
    ground = torch.tensor(list(COLOURS.values()))[colour]
    second = apart(ground, torch.where(draw.chance(count, 1, p=0.5), 1 - (1 - ground) * 0.5, ground * 0.5), 0.24)
    scene = make_scene(
        draw.seeds(1).expand(count), len(parts), ground=ground,
        shape=torch.tensor([SHAPES.index(part.shape) for part in parts]),
        texture=torch.tensor([TEXTURES.index(part.texture) for part in parts]),
        colour=torch.tensor([part.colour for part in parts]), colour2=torch.tensor([part.colour2 for part in parts]),
        background=torch.tensor([BACKGROUNDS.index(_FLAT[k]) for k in kind.tolist()]),
        ground2=torch.where(kind[:, None] == 0, ground, second), ground_grain=draw.uniform(count, low=1.6, high=2.4),
        light=torch.cat((draw.uniform(count, 2, low=-1), draw.uniform(count, 1, high=0.2)), 1),
        **_place(parts, draw, count),
    )  # fmt: skip
    layers = render(scene, size)
    names = ([GROUNDS[_FLAT[k]] if k else "" for k in kind.tolist()], [tuple(COLOURS)[k] for k in colour.tolist()])
    phrases = [" ".join(filter(None, pair)) for pair in zip(*names, strict=True)]
    grounds = tuple(f"on {'an' if text[0] in 'aeiou' else 'a'} {text} background" for text in phrases)
    return Subject(layers.uint8, layers.mask > 0, scene, grounds)


def number_of(name: str) -> int:
    """The number in `world/subjects/<n>`.

    Raises:
        DataError: it is no such name.
    """
    found = re.fullmatch(r"world/subjects/(\d+)", name)
    if not found or name not in NAMES:
        raise DataError(f"there is no subject {name!r}: world/subjects/0 to world/subjects/{len(PARTS) - 1} are drawn")
    return int(found[1])


def write_subject(number: int, folder: str | Path, name: str | None = None, count: int = 5, size: int = 64) -> None:
    """Writes a subject's pictures as PNG files, with captions as text files beside them where `name` is given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    subject = draw_subject(number, count, size=size)
    texts = subject.captions(name) if name else [None] * count
    for k, (picture, text) in enumerate(zip(subject.pictures, texts, strict=True)):
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(folder / f"{k}.png")
        if text:
            (folder / f"{k}.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_subject(int(sys.argv[1]), sys.argv[2])
