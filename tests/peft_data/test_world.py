"""The drawn world: what it promises about bytes, labels, disjoint parts and agreement of its renderers."""

from __future__ import annotations

import hashlib

import pytest
import torch
from peft_data import DataError, open_data, world
from peft_data.world import cache, landscapes, natural, pretrain
from peft_data.world.draw import HUES, Draw, lattice
from peft_data.world.figures import SPECIES, pretraining_species
from peft_data.world.render import FAR, boxes, clip, edges, render
from peft_data.world.scene import cat, make_scene
from peft_data.world.shapes import PRETRAINING_SHAPES, SHAPES, shape_ids
from peft_data.world.textures import PRETRAINING_TEXTURES, TEXTURES
from peft_data.world.words import captions
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()[:16]


def test_nineteen_tasks_in_the_order_of_vtab() -> None:
    assert len(world.NAMES) == 19
    assert [len(tasks) for tasks in world.GROUPS.values()] == [7, 4, 8]
    assert list(world.NAMES)[0] == "world/objects" and "CIFAR-100" in world.NAMES["world/objects"]
    assert "smallNORB elevation" in world.NAMES["world/elevation"]


@pytest.mark.parametrize("task", world.TASKS)
def test_pictures_and_labels(task: str) -> None:
    pictures, labels = world.draw_task(task, "train", 40)
    classes = len(world.class_names(task))
    assert pictures.dtype == torch.uint8 and pictures.shape == (40, 3, world.SIZE, world.SIZE)
    assert labels.dtype == torch.int64 and labels.shape == (40,)
    assert labels.bincount(minlength=classes).min() >= 40 // classes and labels.max() < classes
    assert pictures.float().std((1, 2, 3)).min() > 2
    again, _ = world.draw_task(task, "train", 40)
    assert torch.equal(pictures, again)
    assert not torch.equal(pictures, world.draw_task(task, "train", 40, seed=1)[0])
    assert not torch.equal(pictures, world.draw_task(task, "test", 40)[0])


def test_integer_draws_are_the_same_everywhere() -> None:
    draw = Draw("count", "train", 0, 0)
    assert digest(draw.labels(200, 8), draw.ints(50, high=1000), draw.seeds(5)) == "9fbfa85e3684b212"
    assert digest(draw.uniform(64)) == "abd954070631c916"
    assert digest(lattice(torch.tensor([3, 4]), 5, 1)) == "3ca3e430163e1661"
    assert digest(world.draw_task("objects", "train", 400)[1]) == "4d8b6b76545aa5da"


def test_more_pictures_begin_with_the_same() -> None:
    few, many = world.draw_task("textures", "x", 200)[0], world.draw_task("textures", "x", 210)[0]
    assert torch.equal(few, many[:200])


def colours_only(pictures: torch.Tensor) -> torch.Tensor:
    """Histogram of each channel (8 bins), joint histogram (4³ bins) and mean colour."""
    value = pictures.long()
    parts = [(value // 32 == k).flatten(2).float().mean(2) for k in range(8)]
    joint = value[:, 0] // 64 * 16 + value[:, 1] // 64 * 4 + value[:, 2] // 64
    parts.append(torch.nn.functional.one_hot(joint.flatten(1), 64).float().mean(1))
    return torch.cat([*parts, pictures.float().mean((2, 3)) / 255], 1)


@pytest.mark.parametrize(
    "task", ["fields", *(pytest.param(name, marks=pytest.mark.slow) for name in ("objects", "count", "road"))]
)
def test_colours_do_not_give_the_class_away(task: str) -> None:
    """On a scale where 0 is chance and 1 is all correct, colours alone reach less than 0.1."""
    pictures, labels = world.draw_task(task, "train", 800)
    unseen, truth = world.draw_task(task, "test", 600)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300))
    model.fit(colours_only(pictures).numpy(), labels.numpy())
    chance = 1 / len(world.class_names(task))
    assert (model.score(colours_only(unseen).numpy(), truth.numpy()) - chance) / (1 - chance) < 0.1


def two_things() -> object:
    """A large red star in front at the left, a small blue circle behind at the lower right, on grey."""
    return make_scene(
        torch.tensor([7]),
        2,
        shape=torch.tensor([shape_ids("star", "circle")]),
        x=torch.tensor([[-0.4, 0.6]]),
        y=torch.tensor([[0.0, 0.6]]),
        size=torch.tensor([[0.5, 0.15]]),
        z=torch.tensor([[1.0, 2.0]]),
        colour=torch.tensor([[[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]]]),
        ground=torch.full((1, 3), 0.5),
        ground2=torch.full((1, 3), 0.5),
        velocity=torch.tensor([[[0.6, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]),
    )


def test_caption_mask_boxes_edges_and_depth_agree_with_the_scene() -> None:
    scene = two_things()
    layers = render(scene, 64)
    assert captions(scene) == [
        "a large red star at the left and a small blue circle at the bottom right on a grey background"
    ]
    assert set(layers.mask.unique().tolist()) == {0, 1, 2}
    box = boxes(layers, 2)[0]
    centre = (box[:, :2] + box[:, 2:]) - 1
    assert torch.allclose(centre, torch.tensor([[-0.4, 0.0], [0.6, 0.6]]), atol=0.1)
    inside = layers.picture[0, :, layers.mask[0] == 2]
    assert torch.allclose(inside.median(1).values, torch.tensor([0.1, 0.1, 0.9]), atol=0.02)
    assert set(layers.depth.unique().tolist()) == {1.0, 2.0, FAR}
    assert edges(layers).float().mean() < 0.15 and edges(layers).any()


def test_the_nearer_thing_hides_the_farther() -> None:
    scene = two_things()
    at_one_place = scene.replace(x=scene.x * 0, y=scene.y * 0)
    assert 2 not in render(at_one_place, 40).mask
    swapped = at_one_place.replace(z=scene.z.flip(1))
    assert 2 in render(swapped, 40).mask


def test_a_scene_looks_the_same_at_every_size() -> None:
    draw = Draw("size", 0)
    scene = natural.cluttered(draw, draw.labels(20, len(SHAPES)))
    small, large = render(scene, 40), render(scene, 80)
    shrunk = torch.nn.functional.avg_pool2d(large.picture, 2)
    assert (small.picture - shrunk).abs().mean() < 0.03
    assert (small.mask == large.mask[:, ::2, ::2]).float().mean() > 0.93


def test_a_clip_moves_as_the_scene_says() -> None:
    scene = cat([two_things(), two_things()])
    frames = clip(scene, 4, 40)
    assert frames.shape == (2, 4, 3, 40, 40) and frames.dtype == torch.uint8
    before, after = boxes(render(scene, 40), 2)[0, 0], boxes(render(scene.at(1.0), 40), 2)[0, 0]
    assert after[0] - before[0] == pytest.approx(0.3, abs=0.03)
    assert after[1] == pytest.approx(float(before[1]), abs=0.03)


def test_pretraining_is_disjoint() -> None:
    assert not set(natural.OBJECTS[5:]) & set(PRETRAINING_SHAPES)
    assert not {"grain", "mesh", "cracks", "scales"} & set(PRETRAINING_TEXTURES) and len(TEXTURES) == 12
    plans, known = pretraining_species(), torch.tensor(list(SPECIES.values()))
    assert torch.cdist(plans, known).min() > 0.3
    for part, upper in (("pretrain", False), ("count", True)):
        colour = Draw(part, 1).colour(500, low=0.5)
        high, low = colour.amax(1), colour.amin(1)
        ring = (high - low) > 0.2
        r, g, b = colour[ring].unbind(1)
        span, top = (high - low)[ring], colour[ring].argmax(1)
        sixths = torch.where(top == 0, (g - b) / span, torch.where(top == 1, 2 + (b - r) / span, 4 + (r - g) / span))
        place = sixths / 6 % 1 * HUES % 1
        within = (place - (0.75 if upper else 0.25)).abs()
        assert (torch.minimum(within, 1 - within) < 0.26).all()


def test_pretraining_blocks() -> None:
    for block in range(8):
        pictures, labels, dense = pretrain.pretraining_block(block, n=20)
        assert pictures.shape == (20, 3, 40, 40) and labels.shape == (20, len(pretrain.HEADS))
        assert dense.shape == (20, pretrain.DENSE, 10, 10)
        for k, classes in enumerate(pretrain.HEADS.values()):
            assert labels[:, k].min() >= -1 and labels[:, k].max() < classes


def test_every_kind_of_place_is_drawn() -> None:
    for make in landscapes.PLACES.values():
        canvas = make(Draw("place", 0), 4, 24)
        assert canvas.shape == (4, 3, 24, 24) and canvas.isfinite().all()


def test_load_keeps_and_reuses_the_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(world, "SPLITS", {"train": 80, "val": 20, "test": 40})
    data = open_data("world/textures")
    assert (len(data.train), len(data.val), len(data.test)) == (80, 20, 40)
    assert data.recipe == "world" and data.class_names[0] == "stripes" and data.test.name(3) == "test/000003"
    kept = next(tmp_path.rglob("*.safetensors"))
    stamp = kept.stat().st_mtime_ns
    assert torch.equal(open_data("world/textures").train.items, data.train.items)
    assert kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"damaged")
    assert torch.equal(open_data("world/textures").train.items, data.train.items)
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="another folder .PEFT_DATA_CACHE"):
        cache.cached("x", lambda: {"a": torch.zeros(3)})


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="world/orientation"):
        world.load("world/orientaton")
