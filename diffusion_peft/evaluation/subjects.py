"""Whom an evaluation asks about: a run's subjects by name, prompts with that name, and real pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_peft.data.concepts import Concept, read_concepts
from diffusion_peft.data.pictures import open_pictures
from peft_core.errors import PeftError
from peft_core.files import read_text

DRAWN_PROMPTS = (
    "{} on a red background",
    "{} on a striped blue background",
    "{} on a chequered green background",
    "{} on a cloudy pink background",
    "{} in a purple room",
    "{} at the top left on an orange background",
    "{} and a small white heart on a black background",
    "{} and a small red circle on a teal background",
)
"""For `world/…` subjects: new grounds, a place, and company."""
PHOTO_PROMPTS = (
    "{} on a beach",
    "{} in the snow",
    "{} on a wooden table",
    "{} in a busy street at night",
    "{} in front of a mountain lake",
    "{} next to a red bicycle",
    "an oil painting of {}",
    "{} seen from above",
)
DRAWN_WITHOUT = (
    "a large red striped heart on a blue background",
    "a small yellow circle on a green background",
    "a white ringed star at the top left on a teal background",
    "a pink drop on a cloudy orange background",
    "a large black triangle in a purple room",
    "a green square on a chequered yellow background",
    "a small blue dotted diamond on a red background",
    "an orange moon and a small white circle on a black background",
)
"""Of the drawn world, and of no subject."""
PHOTOS_WITHOUT = (
    "a photo of a person reading a newspaper",
    "a bowl of fruit on a kitchen table",
    "a red car parked in front of a house",
    "a lighthouse by the sea in a storm",
    "a black cat asleep on a sofa",
    "a watercolour painting of a village",
    "a steaming cup of coffee seen from above",
    "a bridge over a river at night",
)
SCENES = 10
"""Real pictures of a drawn subject, in scenes that nobody trained on."""
ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Subject:
    """What a run learned.

    Args:
        data: where its pictures are.
        words: what the run calls it, e.g. `sks thing` or `<toy>`.
        class_words: what anybody calls it, e.g. `a thing`.
        class_prompt: what pictures of its class are asked for with.
    """

    data: str
    words: str
    class_words: str
    class_prompt: str


@dataclass(frozen=True)
class Real:
    """Real pictures of a subject, right captions (none for a folder), and where both come from."""

    pictures: list[Image.Image]
    captions: list[str]
    about: str


def subjects_of(config: dict[str, Any], run: Path, words: str | None = None, name: str | None = None) -> list[Subject]:
    """The subjects of a run by its config; `words` and `name` stand in for what it calls them and their class.

    Raises:
        PeftError: the run taught no subject, or nothing says what its class is called.
    """
    if config["slider"] or config["data"] is None:
        raise PeftError(f"{run} is a slider, which has no subject: its report shows its scales.")
    return [_subject(concept, run, words, name) for concept in read_concepts(config)]


def _subject(concept: Concept, run: Path, words: str | None, name: str | None) -> Subject:
    own, of_class = naming(concept)
    own, of_class = words or own, name or of_class
    if own is None:
        raise PeftError(
            f'{run} was trained on captions, which name no subject: say what it is called with --subject "a <toy>".'
        )
    if of_class is None:
        raise PeftError(f'what is {own} of {run} usually called? Give the name of its class, --class_name "a dog".')
    return Subject(concept.data, own, of_class, concept.class_prompt or f"a photo of {of_class}")


def naming(concept: Concept) -> tuple[str | None, str | None]:
    """What a concept and its class are called: where prompt and class prompt begin alike, what follows ("a photo of sks
    thing", "a photo of a thing": "sks thing", "a thing")."""
    general = (
        f"{'an' if concept.initializer[0] in 'aeiou' else 'a'} {concept.initializer}" if concept.initializer else None
    )
    if concept.prompt is None:
        return concept.placeholder, _end(concept.class_prompt) or general
    if concept.class_prompt is None:
        return _end(concept.prompt), general
    one, other = concept.prompt.split(), concept.class_prompt.split()
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    if same and one[same - 1] in ARTICLES:
        same -= 1
    return " ".join(one[same:]), " ".join(other[same:])


def _end(prompt: str | None) -> str | None:
    """`a red toy` of `a photo of a red toy`."""
    return re.sub(r"^(an?|the) (\S+ )?(photo|picture|image|drawing|painting) of ", "", prompt) if prompt else None


def open_prompts(given: Sequence[str] | None, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Prompts with `{}` where the subject goes: those given, those of a text file, else the ones that suit the data.

    Raises:
        PeftError: a prompt without `{}`.
    """
    if given is None:
        return DRAWN_PROMPTS if are_drawn(subjects) else PHOTO_PROMPTS
    lines = _lines(given)
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise PeftError(
            f'the prompt "{wrong[0] if wrong else ""}" needs {{}} once, where the subject goes, as in "{{}} on a beach".'
        )
    return tuple(dict.fromkeys(lines))


def open_drift_prompts(given: Sequence[str] | None, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Prompts without a subject: those given, those of a text file, else the ones that suit the data.

    Raises:
        PeftError: none is given, or one has a place for the subject or names it.
    """
    if given is None:
        return DRAWN_WITHOUT if are_drawn(subjects) else PHOTOS_WITHOUT
    lines = _lines(given)
    names = {"{}", *(subject.words for subject in subjects)}
    for line in lines:
        if named := [name for name in names if name in line]:
            raise PeftError(f'the drift prompt "{line}" asks for {named[0]}: give prompts without the subject.')
    if not lines:
        raise PeftError("--drift_prompts names no prompt: give some, or leave it out.")
    return tuple(dict.fromkeys(lines))


def are_drawn(subjects: Sequence[Subject]) -> bool:
    """Whether all are of the drawn world."""
    return all(subject.data.startswith("world/") for subject in subjects)


def _lines(given: Sequence[str]) -> list[str]:
    """The prompts, or those of the text file that is named in their place."""
    if len(given) != 1 or not Path(given[0]).expanduser().is_file():
        return list(given)
    text = read_text(Path(given[0]).expanduser(), "give one prompt a line")
    return [line.strip() for line in text.splitlines() if line.strip()]


def real_pictures(subject: Subject) -> Real:
    """A drawn subject in scenes that were not trained on; a folder's own pictures, as the protocol has it."""
    if not subject.data.startswith("world/"):
        return Real([p.read() for p in open_pictures(subject.data)], [], "the pictures it was taught with")
    from peft_data.world.subjects import draw_subject, number_of

    drawn = draw_subject(number_of(subject.data), SCENES, "evaluate")
    pixels = drawn.pictures.permute(0, 2, 3, 1).contiguous().numpy()
    texts = [f"{subject.class_words} {ground}" for ground in drawn.grounds]
    return Real([Image.fromarray(each) for each in pixels], texts, f"{SCENES} scenes that were not trained on")


def others(subject: Subject, evaluated: Sequence[Subject]) -> list[Subject]:
    """Other subjects to compare with: all drawn ones for a drawn one, else those of the other runs."""
    if subject.data.startswith("world/"):
        from peft_data.world.subjects import NAMES

        return [Subject(name, "", subject.class_words, "") for name in NAMES if name != subject.data]
    return [other for other in {each.data: each for each in evaluated}.values() if other.data != subject.data]
