"""What is remembered is forgotten when anything that decides it changes: class weights, image features, fingerprints."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clip_peft import OpenVocabulary, saved
from clip_peft.open_vocabulary import NamesReadAlike
from clip_peft.training.features import Encoder
from peft_core import PeftError, adapt, disabled, remove, set_scale
from peft_core.saved.configuration import configuration_of, differs
from tests.clip_peft.models import (
    NAMES,
    TEXT,
    VISION,
    clip,
    close,
    coca,
    custom_clip,
    pictures,
    randomised,
    siglip,
    tokenizer,
)


def moved(whole: OpenVocabulary, size: float = 0.3) -> OpenVocabulary:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in whole.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return whole.eval()


def fresh(whole: OpenVocabulary) -> torch.Tensor:
    """The logits of a copy that remembers nothing."""
    return copy.deepcopy(whole)(pictures())


@pytest.mark.parametrize("method", ["lora", "clip_lora", "bitfit", "layer_norm", "ssf", "adaptformer"])
@torch.no_grad()
def test_class_weights_follow_grafts_on_and_off(method: str):
    stock = OpenVocabulary(clip(), "zero_shot", NAMES, tokenizer())(pictures())
    hyper = {"bottleneck": 4} if method == "adaptformer" else {}
    whole = moved(OpenVocabulary(clip(), method, NAMES, tokenizer(), **hyper))
    adapted = whole(pictures())
    assert float((adapted - stock).abs().max()) > 0.1
    with disabled(whole.model):
        close(whole(pictures()), stock)
    close(whole(pictures()), adapted)
    if method in ("lora", "bitfit"):
        set_scale(whole.model, 0.0)
        close(whole(pictures()), stock)
        set_scale(whole.model, 1.0)
        close(whole(pictures()), adapted)
    remove(whole.model)
    close(whole(pictures()), stock)


def slope(parameter: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, parameter.numel()).view_as(parameter)


CHANGES: dict[str, Any] = {
    "frozen weights loaded": lambda w: w.model.load_state_dict({k: v * 1.1 for k, v in w.model.state_dict().items()}),
    "frozen weights through .data": lambda w: w.model.token_embedding.weight.data.mul_(1.5),
    "one number through .data": lambda w: w.model.transformer.resblocks[1].mlp.c_fc.weight.data[0, 0].add_(5.0),
    "an average put into .data": lambda w: [p.data.add_(slope(p)) for p in w.learner.parameters()],
    "another tensor as .data": lambda w: [setattr(p, "data", p.data + slope(p)) for p in w.learner.parameters()],
    "the positions": lambda w: w.model.positional_embedding.data.mul_(2),
    "an activation": lambda w: [setattr(b.mlp, "gelu", torch.nn.Tanh()) for b in w.model.transformer.resblocks],
    "a setting of a module": lambda w: [setattr(b.ln_1, "eps", 0.5) for b in w.model.transformer.resblocks],
    "a graft": lambda w: moved_graft(w),
}


def moved_graft(whole: OpenVocabulary) -> None:
    adapt(whole.model, "lora", rank=2, tower="text")
    moved(whole)


@pytest.mark.parametrize("method", ["zero_shot", "coop", "kgcoop", "taskres"])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_class_weights_follow(change: str, method: str):
    whole = moved(OpenVocabulary(clip(), method, NAMES, tokenizer(), **({"context": 4} if method == "coop" else {})))
    before = whole(pictures())
    close(whole(pictures()), before)
    CHANGES[change](whole)
    found = whole(pictures())
    close(found, fresh(whole))
    if whole.trainable() or "average" not in change and "another" not in change:
        assert float((found - before).abs().max()) > 1e-4
    if method == "kgcoop" and "average" not in change and "another" not in change:
        close(whole.learner.hand, copy.deepcopy(whole).learner.hand)


@torch.no_grad()
def test_remembered_weights_are_used_copied_and_pickled():
    whole = moved(OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=4))
    first = whole.class_weights()
    assert whole.class_weights() is first
    assert whole.set_classes(["zebra", "okapi"]).class_weights().shape[0] == 2
    other = pickle.loads(pickle.dumps(whole))
    assert not other.learner._kept
    close(other(pictures()), whole(pictures()))
    with pytest.raises(PeftError, match="tokens too long"):
        whole.set_classes(["zebra " * 30])
    assert whole.class_names == ("zebra", "okapi") and whole(pictures()).shape == (4, 2)


def test_functional_calls_and_transforms_of_what_is_remembered():
    whole = moved(OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=4))
    with torch.no_grad():
        whole(pictures())
    other = {"learner.context": whole.learner.context.detach() + 0.3}

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(whole, values, (pictures(),)).square().mean()

    changed = copy.deepcopy(whole)
    with torch.no_grad():
        changed.learner.context.copy_(other["learner.context"])
        close(torch.func.functional_call(whole, other, (pictures(),)), changed(pictures()))
    expected = torch.autograd.grad(changed(pictures()).square().mean(), changed.learner.context)[0]
    close(torch.func.grad(loss)(other)["learner.context"], expected)


@pytest.mark.parametrize(
    "build, method, hyper",
    [
        (clip, "maple", dict(depth=3)),
        (clip, "promptsrc", dict(depth=2, template="a photo of a {}.")),
        (siglip, "coop", dict(context=4)),
        (siglip, "maple", dict(depth=3)),
        (coca, "cocoop", dict(reduction=1)),
        (custom_clip, "kgcoop", {}),
    ],
)
def test_threads_share_a_model_with_different_prompts(build: Any, method: str, hyper: dict[str, Any]):
    """One model under two learners and no learner at all, forwards at the same time in six threads."""
    model = build()
    x = pictures()
    runs = [moved(OpenVocabulary(model, method, NAMES, tokenizer(), **hyper), size) for size in (0.05, 0.2)]
    runs.append(OpenVocabulary(model, "zero_shot", NAMES, tokenizer()).eval())
    alone = [run(x).detach() for run in runs]
    wrong: list[str] = []

    def work(number: int) -> None:
        run, expected = runs[number % 3], alone[number % 3]
        for _ in range(6):
            with torch.no_grad():
                found = run(x)
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                wrong.append(f"{number}: {float((found - expected).abs().max())}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "build, method, hyper",
    [
        (clip, "maple", dict(depth=3)),
        (clip, "promptsrc", dict(depth=2, template="a photo of a {}.")),
        (siglip, "maple", dict(depth=3)),
        (custom_clip, "coop", dict(context=4)),
    ],
)
def test_activation_checkpointing_runs_blocks_again_with_their_prompts(build: Any, method: str, hyper: dict[str, Any]):
    whole, labels = moved(OpenVocabulary(build(), method, NAMES, tokenizer(), **hyper)), torch.tensor([0, 1, 2, 3])

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(whole.loss(pictures(), labels), whole.trainable()))

    expected = gradients()
    whole.model.set_grad_checkpointing(True)
    whole.model.train()  # checkpointing is off in eval mode; these towers draw no chance
    for found, one in zip(gradients(), expected, strict=True):
        close(found, one)


def test_a_forward_that_raises_leaves_nothing_in_the_model():
    whole = moved(OpenVocabulary(clip(), "maple", NAMES, tokenizer(), depth=2))
    stock = whole.model.encode_image(pictures())
    block = whole.model.visual.transformer.resblocks[1]
    handle = block.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        whole(pictures())
    handle.remove()
    close(whole.model.encode_image(pictures()), stock)
    close(copy.deepcopy(whole)(pictures()), whole(pictures()))


# ---- image features and fingerprints -------------------------------------------------------------------------------


def other_clip(quick_gelu: bool = True, head_width: int = 16, **vision: Any) -> Any:
    torch.manual_seed(0)
    vision = VISION | {"head_width": head_width} | vision
    return randomised(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT, quick_gelu=quick_gelu))


OTHERS = [dict(quick_gelu=False), dict(head_width=32), dict(pool_type="avg"), dict(final_ln_after_pool=True)]


@pytest.mark.parametrize("change", OTHERS)
def test_image_features_are_kept_by_the_configuration_too(change: dict[str, Any], tmp_path: Path):
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)

    def features(model: Any, folder: Path | None) -> torch.Tensor:
        whole = OpenVocabulary(model, "coop", NAMES, tokenizer(), context=2)
        return Encoder(whole, (0.5,) * 3, (0.5,) * 3, folder).views(images, [None])[0]

    features(other_clip(), tmp_path)
    assert torch.equal(features(other_clip(**change), tmp_path), features(other_clip(**change), None))
    assert len(list(tmp_path.glob("*.f32"))) == 2
    features(other_clip(), tmp_path)
    assert len(list(tmp_path.glob("*.f32"))) == 2  # and found again


def test_image_features_follow_new_weights(tmp_path: Path):
    images, whole = (
        torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8),
        OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=2),
    )
    encoder = Encoder(whole, (0.5,) * 3, (0.5,) * 3, tmp_path)
    encoder.views(images, [None])
    whole.model.visual.proj.data.mul_(2)
    close(encoder.views(images, [None])[0], encoder.encode(images))


@pytest.mark.parametrize("method", ["coop", "lora"])
def test_an_adapter_loads_onto_its_configuration_only(method: str, tmp_path: Path):
    whole = moved(
        OpenVocabulary(other_clip(), method, NAMES, tokenizer(), **({"context": 4} if method == "coop" else {}))
    )
    saved.save(whole, tmp_path / "adapter")
    close(saved.load(other_clip(), tmp_path / "adapter", tokenizer())(pictures()), whole(pictures()))
    for change in (dict(quick_gelu=False), dict(head_width=32)):
        model = other_clip(**change)
        with pytest.raises(PeftError, match="backbone that is made otherwise") as error:
            saved.load(model, tmp_path / "adapter", tokenizer())
        assert "there" in str(error.value) and "\n" not in str(error.value)
        assert all(p.requires_grad for p in model.parameters())
        saved.load(model, tmp_path / "adapter", tokenizer(), force=True)


def test_a_configuration_leaves_out_grafts_and_the_state_of_training():
    here = configuration_of(clip())
    adapted = adapt(clip(), "adaptformer", bottleneck=4).train()
    assert differs(configuration_of(adapted), here) is None and differs({}, here) is None
    assert differs(configuration_of(other_clip(quick_gelu=False)), here) == (
        "layers without weights: GELU × 6 there, QuickGELU × 6 here"
    )


# ---- names ---------------------------------------------------------------------------------------------------------


def test_imagenet_opens_with_its_published_names():
    names = open_clip.IMAGENET_CLASSNAMES
    assert len(set(names)) == len(names) - 2
    whole = OpenVocabulary(clip(), "zero_shot", names[600:840], tokenizer())  # both pairs stand here
    with torch.no_grad():
        assert whole(pictures()).shape == (4, 240)
    assert whole.class_names == tuple(names[600:840])


def test_names_that_are_the_same_tokens_are_told():
    with pytest.warns(NamesReadAlike, match="no model can tell them apart: Apple, apple"):
        whole = OpenVocabulary(clip(), "zero_shot", ["Apple", "apple", "pear", "blue_ball"], tokenizer())
    assert whole.class_names == ("Apple", "apple", "pear", "blue_ball")
    with pytest.warns(NamesReadAlike, match="blue_ball, blue ball"):
        whole.set_classes(["blue_ball", "blue ball"])
