"""Captions of scenes: plain English about what is there, of which colour and texture, and where."""

from __future__ import annotations

import torch

from .draw import luminance
from .render import screen
from .scene import BACKGROUNDS, Scene
from .shapes import SHAPES
from .textures import TEXTURES

_HUES = ("red", "orange", "yellow", "green", "green", "teal", "blue", "blue", "purple", "pink", "red")
_HUE_EDGES = (0.035, 0.115, 0.19, 0.31, 0.43, 0.53, 0.63, 0.71, 0.82, 0.94, 1.01)
_TEXTURES = {
    "plain": "",
    "stripes": "striped",
    "checks": "chequered",
    "dots": "dotted",
    "rings": "ringed",
    "zigzag": "zigzag",
    "bricks": "bricked",
    "blotches": "blotchy",
    "grain": "grained",
    "mesh": "meshed",
    "cracks": "cracked",
    "scales": "scaly",
}
_GROUNDS = {
    "gradient": "shaded",
    "clouds": "cloudy",
    "stripes": "striped",
    "checks": "chequered",
    "speckle": "speckled",
}


def colour_name(rgb: torch.Tensor) -> str:
    """The nearest everyday name of an RGB colour (3 values in [0, 1])."""
    high, low = float(rgb.max()), float(rgb.min())
    if high - low < 0.12 * max(high, 0.3):
        light = float(luminance(rgb))
        return "black" if light < 0.2 else "white" if light > 0.8 else "grey"
    r, g, b = rgb.tolist()
    span = high - low
    hue = ((g - b) / span if high == r else 2 + (b - r) / span if high == g else 4 + (r - g) / span) / 6 % 1
    name = next(name for name, edge in zip(_HUES, _HUE_EDGES, strict=True) if hue <= edge)
    return "brown" if name == "orange" and high < 0.6 else name


def object_words(scene: Scene, n: int, slot: int, radius: float) -> str:
    """For example "a large red striped star"."""
    size = "small" if radius < 0.2 else "large" if radius > 0.45 else ""
    words = [
        size,
        colour_name(scene.colour[n, slot]),
        _TEXTURES[TEXTURES[int(scene.texture[n, slot])]],
        SHAPES[int(scene.shape[n, slot])],
    ]
    text = " ".join(word for word in words if word)
    return ("an " if text[0] in "aeiou" else "a ") + text


def _place(x: float, y: float) -> str:
    rows = "top" if y < -0.33 else "bottom" if y > 0.33 else ""
    columns = "left" if x < -0.33 else "right" if x > 0.33 else ""
    return f"at the {' '.join(w for w in (rows, columns) if w)}" if rows or columns else "in the middle"


def captions(scene: Scene, places: bool = True) -> list[str]:
    """One sentence a scene, the largest object first.

    Args:
        scene: N scenes.
        places: say where each object is.
    """
    centre_x, centre_y, radius = screen(scene)
    out = []
    for n in range(len(scene)):
        parts = []
        for slot in radius[n].argsort(descending=True).tolist():
            if scene.present[n, slot]:
                where = " " + _place(float(centre_x[n, slot]), float(centre_y[n, slot])) if places else ""
                parts.append(object_words(scene, n, slot, float(radius[n, slot])) + where)
        kind = BACKGROUNDS[int(scene.background[n])]
        ground = " ".join(w for w in (_GROUNDS.get(kind, ""), colour_name(scene.ground[n])) if w)
        place = "in a room" if kind == "hall" else f"on {'an' if ground[0] in 'aeiou' else 'a'} {ground} background"
        out.append((" and ".join(parts) or "nothing") + " " + place)
    return out
