"""The figures of an evaluation by hand, what the shipped features tell apart, and names in prompts."""

import math

import pytest
import torch

from diffusion_peft.data.concepts import Concept
from diffusion_peft.evaluation import figures
from diffusion_peft.evaluation.scorers import clip_scorer, image_scorer, open_scorers
from diffusion_peft.evaluation.subjects import DRAWN_PROMPTS, Subject, naming, open_prompts, others, real_pictures
from diffusion_peft.training.job import next_commands
from diffusion_peft.training.tasks import Task
from peft_core.errors import PeftError
from peft_core.jobs.runs.folder import RunFolder

X, Y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
D = torch.tensor([math.sqrt(0.5), math.sqrt(0.5)])


def test_likeness_drift_and_diversity() -> None:
    assert figures.likeness(torch.stack([X, D]), torch.stack([X, Y])) == pytest.approx((1 + 0 + 2 * math.sqrt(0.5)) / 4)
    assert figures.pairs(torch.stack([X, Y, X])).tolist() == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert figures.drift(torch.stack([X, Y]), torch.stack([X, X])) == 0.5
    assert figures.diversity([torch.stack([X, Y]), torch.stack([X, X]), X[None]]) == 0.5
    assert figures.diversity([X[None]]) is None


def test_separation() -> None:
    same, other = torch.tensor([0.5, 0.9]), torch.tensor([0.1, 0.6, 0.7, 0.8])
    assert figures.separation(same, other) == (1 / 4 + 1) / 2
    assert figures.separation(other, same + 1) == 0.0


def test_prompt_fidelity() -> None:
    images, texts = torch.stack([X, D, Y]), torch.stack([X, Y])
    found = figures.prompt_fidelity(images, texts, torch.tensor([0, 0, 0]))
    assert found["clip_t"] == pytest.approx((1 + math.sqrt(0.5) + 0) / 3)
    assert found["clip_t_wrong"] == pytest.approx((0 + math.sqrt(0.5) + 1) / 3)
    assert found["prompt_accuracy"] == pytest.approx(2 / 3)
    assert set(figures.prompt_fidelity(images, texts[:1], torch.tensor([0, 0, 0]))) == {"clip_t"}


def test_summaries() -> None:
    rows = [{"m": "a", "x": 1.0, "y": None}, {"m": "b", "x": 5.0}, {"m": "a", "x": 3.0}]
    one, other = figures.summarise(rows, "m", ["x", "y"])
    assert one == {"m": "a", "runs": 2, "x": 2.0, "x_std": pytest.approx(math.sqrt(2)), "y": None, "y_std": None}
    assert other["x"] == 5.0 and other["x_std"] is None


@pytest.mark.parametrize(
    ("concept", "own", "of_class"),
    [
        ({"prompt": "a photo of sks thing", "class_prompt": "a photo of a thing"}, "sks thing", "a thing"),
        ({"prompt": "a photo of a <toy> thing", "class_prompt": "a photo of a thing"}, "a <toy> thing", "a thing"),
        ({"prompt": "a photo of <toy>", "placeholder": "<toy>", "initializer": "dog"}, "<toy>", "a dog"),
        ({"placeholder": "<owl>", "initializer": "owl"}, "<owl>", "an owl"),
        ({"prompt": "a <toy>", "class_prompt": "a ball"}, "a <toy>", "a ball"),
        ({"prompt": "a red photo of sks dog"}, "sks dog", None),
        ({}, None, None),
    ],
)
def test_names_in_prompts(concept: dict, own: str | None, of_class: str | None) -> None:
    assert naming(Concept("x", **concept)) == (own, of_class)
    lines = next_commands(RunFolder("x", "diffusion_peft fit"), [], Task({}, [Concept("x", **concept)]))
    assert ("--class_name CLASS" in lines[1]) == (own is not None and of_class is None)


def test_prompts(tmp_path) -> None:
    drawn = [Subject("world/subjects/1", "sks", "a thing", "a thing")]
    assert open_prompts(None, drawn) == DRAWN_PROMPTS and "{} on a beach" in open_prompts(
        None, [Subject("d", "", "", "")]
    )
    (tmp_path / "list.txt").write_text("{} here\n\n{} there\n")
    assert open_prompts([str(tmp_path / "list.txt")], drawn) == ("{} here", "{} there")
    with pytest.raises(PeftError, match='the prompt "a dog" needs {} once'):
        open_prompts(["{} a", "a dog"], drawn)


def test_reference_features_tell_subjects_and_captions_apart() -> None:
    """On real drawn pictures: same subject above other subjects, right caption above wrong ones."""
    image, clip = image_scorer("reference"), clip_scorer("reference")
    subject = Subject("world/subjects/4", "sks thing", "a thing", "a thing")
    real = real_pictures(subject)
    assert len(real.pictures) == len(real.captions) == 10 and len(others(subject, [])) == 9
    for scorer in (image, clip):
        mine = scorer.features(real.pictures)
        rest = torch.cat([scorer.features(real_pictures(other).pictures[:3]) for other in others(subject, [])])
        assert mine.norm(dim=1).sub(1).abs().max() < 1e-5
        assert figures.pairs(mine).mean() > (mine @ rest.T).mean() + 0.05
        assert figures.separation(figures.pairs(mine), mine @ rest.T) > 0.6
    texts = list(dict.fromkeys(real.captions))
    right = torch.tensor([texts.index(caption) for caption in real.captions])
    found = figures.prompt_fidelity(clip.features(real.pictures), clip.texts(texts), right)
    assert found["clip_t"] > found["clip_t_wrong"] + 0.05


def test_models_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_core.jobs.hub.timm_models.must_reach", _unreachable)
    monkeypatch.setattr("peft_core.jobs.hub.open_clip_models.must_reach", _unreachable)
    for asked, option in (((None, "reference"), "--image_features"), (("reference", None), "--clip")):
        with pytest.raises(PeftError, match=f"cannot be had .no network.* or {option} reference for figures"):
            open_scorers(*asked, drawn=False)
    image, clip = open_scorers("reference", "reference", drawn=False)
    assert (image.name, clip.name) == ("reference", "reference")
    with pytest.raises(PeftError, match="give --image_features a folder"):
        open_scorers("vit_small_patch16_224.dino", None, drawn=True)


def _unreachable(*args, **more) -> None:
    raise PeftError("no network: give --backbone a folder.")
