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


ENSEMBLES: dict[str, tuple[int, ...]] = {
    "ensemble": tuple(range(80)),
    "ensemble60": tuple(range(60)),
    "ensemble8": (7, 35, 39, 44, 64, 67, 69, 73),
    "ensemble7": (7, 35, 44, 64, 67, 69, 73),
}
"""Which of OpenAI's 80: all; those of PromptSRC; those of TaskRes and CLAP on ImageNet; those of Tip-Adapter there."""


def templates(chosen: str | Sequence[str]) -> tuple[str, ...]:
    """The templates meant by a template, several, a data set's name, or the name of an ensemble ("ensemble": OpenAI's 80).

    Raises:
        PeftError: a word that is neither a name nor a template, or no template at all.
    """
    if not isinstance(chosen, str):
        if not chosen:
            raise PeftError("template is an empty list: name at least one.")
        return tuple(chosen)
    if chosen in ENSEMBLES:
        import open_clip

        return tuple(open_clip.OPENAI_IMAGENET_TEMPLATES[i]("{}") for i in ENSEMBLES[chosen])
    if "{}" in chosen:
        return (chosen,)
    if chosen not in TEMPLATES:
        known = [*ENSEMBLES, *TEMPLATES]
        raise PeftError(
            f'template "{chosen}" holds no {{}} and is no data set\'s name{nearest(chosen, known)} (known: {", ".join(known)}).'
        )
    return (TEMPLATES[chosen],)
