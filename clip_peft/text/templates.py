"""Texts around a class name: one, those customary for a data set, or OpenAI's 80 for ImageNet."""

from collections.abc import Sequence

from peft_core.errors import PeftError, nearest

DEFAULT = "a photo of a {}."

TEMPLATES: dict[str, str] = {
    "imagenet": DEFAULT,
    "caltech101": DEFAULT,
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": DEFAULT,
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": DEFAULT,
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
"""Data set -> template, as CoOp's authors publish them."""


def templates(chosen: str | Sequence[str]) -> tuple[str, ...]:
    """The templates meant by a template, several, a data set's name, or "ensemble" (OpenAI's 80).

    Raises:
        PeftError: a word that is neither a name nor a template.
    """
    if not isinstance(chosen, str):
        return tuple(chosen)
    if chosen == "ensemble":
        import open_clip

        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    if "{}" in chosen:
        return (chosen,)
    if chosen not in TEMPLATES:
        known = ["ensemble", *TEMPLATES]
        raise PeftError(
            f'template "{chosen}" holds no {{}} and is no data set\'s name{nearest(chosen, known)} (known: {", ".join(known)}).'
        )
    return (TEMPLATES[chosen],)
