"""What every open-vocabulary method promises, on open_clip's two layouts, SigLIP-style and CoCa models."""

import copy

import open_clip
import pytest
import torch

from clip_peft import OpenVocabulary
from clip_peft.learner import OpenVocabularyMethod
from clip_peft.training import evaluate
from peft_core import PeftError, adapt, count_parameters, list_methods
from peft_core.registry import find_method
from tests.clip_peft.models import NAMES, clip, close, coca, custom_clip, pictures, residual_clip, siglip, tokenizer

EXAMPLES = {name: tuple(find_method(name).examples()) for name in list_methods(grafts=False)}
MODELS = {"clip": clip, "custom": custom_clip, "siglip": siglip, "coca": coca}
LABELS = torch.tensor([0, 3, 2, 6])


def images(whole: OpenVocabulary) -> torch.Tensor:
    """Four pictures, or nine views of each where the method looks at several."""
    x = pictures()
    if not evaluate.test_views(whole.method):
        return x
    noise = torch.randn(4, 9, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    return torch.cat((x[:, None], x[:, None] + noise), dim=1)


def built(model: str, settings: OpenVocabularyMethod, names=NAMES, seed: int = 0) -> OpenVocabulary:
    stock = MODELS[model]()
    torch.manual_seed(seed)
    whole = OpenVocabulary(stock, settings, names, tokenizer())
    if hasattr(whole.learner, "remember"):
        whole.learner.remember(whole.encode(pictures(8)), torch.arange(8) % len(names))
    return whole


def trained(model: str, settings: OpenVocabularyMethod) -> OpenVocabulary:
    whole = built(model, settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in whole.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return whole


def named(whole: OpenVocabulary, x: torch.Tensor) -> torch.Tensor:
    whole.learner.begin()
    return whole(x)


def test_methods_of_names_are_no_grafts():
    assert not set(list_methods()) & set(EXAMPLES) and set(list_methods(None)) >= set(EXAMPLES)


each = pytest.mark.parametrize("settings", [first for first, *_ in EXAMPLES.values()], ids=list(EXAMPLES))
OWN = ("clip", "custom")
"""Models of open_clip's own towers, which some methods are made for."""


def on(*models: str) -> pytest.MarkDecorator:
    """Each method on each of these models that it suits; in the quick tests on the first and another one in turn."""
    chosen = []
    for turn, (name, (first, *_)) in enumerate(EXAMPLES.items()):
        fit = [model for model in models if model in OWN or not first.suits]
        for place, model in enumerate(fit):
            rare = place > 0 and place != 1 + turn % max(1, len(fit) - 1)
            chosen.append(pytest.param(model, first, id=f"{model}-{name}", marks=pytest.mark.slow if rare else ()))
    return pytest.mark.parametrize(("model", "settings"), chosen)


on_each_model = on(*MODELS)


@on_each_model
def test_only_its_parameters_train_and_each_gets_a_gradient(model: str, settings: OpenVocabularyMethod):
    whole = trained(model, settings).train()
    inside = {p for p in whole.model.parameters() if p.requires_grad}
    assert bool(inside) == bool(settings.inner()) and whole.model.training == bool(inside)
    assert all(p.dtype == torch.float32 for p in whole.trainable())
    if not whole.trainable():
        assert all(count == 0 for hyper, count in settings.vit_b16 if not hyper)
        return
    if inside:
        whole.loss(images(whole), LABELS).backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in inside)
    whole.learner.before_step(9, 10)
    whole.loss(images(whole), LABELS).backward()
    for name, parameter in whole.learner.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@on_each_model
def test_state_loads_into_another_and_features_may_be_cached(model: str, settings: OpenVocabularyMethod):
    whole = trained(model, settings).eval()
    x = images(whole)
    logits = named(whole, x)
    assert logits.shape == (4, len(NAMES)) and torch.isfinite(logits).all()
    whole.learner.begin()
    assert torch.equal(whole.logits(whole.encode(x)), logits)
    other = built(model, settings, seed=1).eval()
    other.learner.load_state_dict(whole.learner.state_dict())
    other.model.load_state_dict(whole.model.state_dict())
    assert torch.equal(named(other, x), logits)
    assert torch.equal(named(copy.deepcopy(whole), x), logits)
    with torch.no_grad():  # where class features are remembered
        close(named(whole, x), logits)
        close(named(whole, x), logits)
    with torch.inference_mode():
        close(named(whole, x), logits)
    assert sum(v.numel() for v in whole.learner.state_dict().values()) < 20_000  # never the model's own weights


@on("clip", "siglip")
def test_other_class_names(model: str, settings: OpenVocabularyMethod):
    whole = trained(model, settings).eval()
    x = images(whole)
    with torch.no_grad():
        before = named(whole, x)
    others = ["zebra", "blue triangle", NAMES[1]]
    if settings.of_classes:
        with pytest.raises(PeftError, match="cannot name other classes, because .*: train it on the new classes"):
            whole.set_classes(others)
        with torch.no_grad():
            assert torch.equal(whole.set_classes(NAMES)(x), before)
        return
    with torch.no_grad():
        after = named(whole.set_classes(others), x)
    assert after.shape == (4, 3) and whole.class_names == tuple(others)
    if not settings.of_pictures and not settings.tells_trained:  # the other names decide nothing of it
        close(after[:, 2], before[:, 1])


@each
def test_bfloat16_autocast_with_float32_parameters(settings: OpenVocabularyMethod):
    whole = trained("clip", settings).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = whole.loss(images(whole), LABELS)
    assert torch.isfinite(loss)
    if whole.trainable():
        loss.backward()
        assert all(
            p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all()
            for p in whole.trainable()
            if p.grad is not None
        )


@each
def test_a_few_steps_lower_the_loss(settings: OpenVocabularyMethod):
    whole = built("clip", settings).train()
    if not whole.trainable():
        return
    x, optimizer, losses = images(whole), torch.optim.Adam(whole.trainable(), lr=1e-2), []
    for _ in range(8):
        loss = whole.loss(x, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


STATED = [(name, *stated) for name in EXAMPLES for stated in find_method(name).vit_b16]  # type: ignore[attr-defined]


@pytest.mark.parametrize("method, hyper, expected", [*STATED, ("clip_lora", {}, 184_320)])
def test_exact_parameter_counts_on_vit_b16(outline, method: str, hyper: dict, expected: int):
    model, classes = copy.deepcopy(outline), 1000
    names = [f"class {i}" for i in range(classes)]
    whole = OpenVocabulary(model, method, names, **hyper)
    if hyper.get("fine_tune"):  # as many parameters as there are pictures
        labels = torch.empty(16 * classes, dtype=torch.long, device="meta")
        whole.learner.remember(torch.empty(16 * classes, 512, device="meta"), labels)
    assert sum(p.numel() for p in whole.trainable()) == expected
    assert not model.logit_scale.requires_grad
    if method == "clip_lora":
        assert count_parameters(model).inserted == expected


@pytest.fixture(scope="module")
def outline():
    with torch.device("meta"):
        config = open_clip.get_model_config("ViT-B-16")
        return open_clip.CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})


# ---- methods that graft --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, hyper",
    [("clip_lora", {}), ("lora", dict(rank=2, tower="text")), ("lora", dict(rank=2, tower="image")), ("bitfit", {}),
     ("layer_norm", {}), ("ssf", {}), ("adaptformer", dict(bottleneck=4)), ("vpt", dict(tokens=2, tower="image"))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_grafts_train_through_the_texts(model: str, method: str, hyper: dict):
    whole = OpenVocabulary(MODELS[model](), method, NAMES, tokenizer(), template="a photo of a {}.", **hyper).train()
    x = pictures()
    start = whole.eval()(x).detach()
    if method not in ("vpt", "ssf"):
        close(OpenVocabulary(MODELS[model](), "zero_shot", NAMES, tokenizer())(x), start)
    optimizer = torch.optim.SGD(whole.trainable(), lr=0.1)
    whole.train().loss(x, LABELS).backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.allclose(whole.eval()(x), start)
    assert whole.set_classes(["zebra"])(x).shape == (4, 1)
    assert not whole.model.logit_scale.requires_grad


def test_clip_lora_is_a_preset_of_lora():
    whole = OpenVocabulary(clip(), "clip_lora", NAMES, tokenizer())
    assert whole.method == find_method("lora")(rank=2, alpha=1.0, rs=True, dropout=0.25, targets=("q", "k", "v"))
    assert whole.method.scale(2) == pytest.approx(2**-0.5)


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: OpenVocabulary(clip(), "coop", [], tokenizer()), "class_names is empty: name at least one class."),
        (lambda: OpenVocabulary(clip(), "lora", ["a", "_ "], tokenizer()), "class name number 2 is empty"),
        (lambda: OpenVocabulary(clip(), "lora", [3, "a"], tokenizer()), "class name number 1 is 3, no text"),
        (lambda: OpenVocabulary(clip(), "lora", None, tokenizer()), "class_names is None: pass a list of names."),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=10**9), "a text of this model holds 24 tokens"),
        (lambda: OpenVocabulary(clip(), "prograd", NAMES, tokenizer(), context=10**9), "a text of this model holds 24 tokens"),
        (lambda: OpenVocabulary(clip(), "maple", NAMES, tokenizer(), depth=2, context=24, init=None), "holds 24 tokens"),
        (lambda: OpenVocabulary(clip(), "cocoop", NAMES, tokenizer(), context=2), "has 4 tokens, more than context 2"),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, lambda texts: texts), "must be called as tokenizer(texts, "),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, lambda t, context_length: t), "give ids N n (it gives list)"),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=0), "coop: context must be 1 or more, not 0."),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=19), "tokens too long for a text of 24 beside 19"),
        (lambda: OpenVocabulary(clip(), "kgcoop", NAMES, tokenizer(), context=6), 'init "a photo of a" has 4 tokens'),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, tokenizer(), init="a", class_specific=True), "leave init out"),
        (lambda: OpenVocabulary(clip(), "coopp", NAMES, tokenizer()), 'unknown method "coopp", did you mean "coop"?'),
        (lambda: OpenVocabulary(clip(), "coop", NAMES, tokenizer(), contxt=4), 'coop has no setting "contxt", did you mean'),
        (lambda: OpenVocabulary(clip(), "zero_shot", NAMES, tokenizer(), template="oxford_pet"), 'did you mean "oxford_pets"'),
        (lambda: OpenVocabulary(clip(), "maple", NAMES, tokenizer(), depth=9), "depth 9: it must lie between 1 and 3"),
        (lambda: OpenVocabulary(clip(), "prograd", NAMES, tokenizer(), context=3), "4 tokens, more than context 3"),
        (lambda: OpenVocabulary(clip(vocab_size=50_000), "coop", NAMES), "pass tokenizer=open_clip.get_tokenizer"),
        (lambda: OpenVocabulary(clip(), "dual_coop", NAMES, tokenizer(), side=64), "with ResNets alone: leave side out"),
        (lambda: OpenVocabulary(clip(), "tip_adapter", NAMES, tokenizer())(pictures()), "cache is empty"),
        (lambda: OpenVocabulary(clip(), "tpt", NAMES, tokenizer())(pictures()), "B V 3 H W"),
        (lambda: adapt(clip(), "coop"), 'coop is no graft: use clip_peft.OpenVocabulary(model, "coop", class_names).'),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(build, message: str):
    with pytest.raises(PeftError) as error:
        build()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_leaves_the_model_as_it_was():
    model = clip()
    with pytest.raises(PeftError):
        OpenVocabulary(model, "coop", NAMES, tokenizer(), context=0)
    assert all(p.requires_grad for p in model.parameters())


def test_convolutional_towers_take_no_image_prompts():
    model = residual_clip()
    with pytest.raises(PeftError, match="maple needs an image tower whose transformer blocks take further tokens"):
        OpenVocabulary(model, "maple", NAMES, tokenizer(), depth=2)
    whole = OpenVocabulary(model, "coop", NAMES, context=2).train()
    statistics = copy.deepcopy(model.visual.bn1.running_mean)
    whole.loss(pictures(), LABELS).backward()
    assert torch.equal(model.visual.bn1.running_mean, statistics)


def test_the_known_tower_of_a_model_is_adapted_and_the_other_is_named():
    for tower in (None, "image"):
        model = residual_clip()
        with pytest.raises(
            PeftError, match='the image tower of this open_clip model is known by its layers.*tower="text"'
        ):
            OpenVocabulary(model, "adaptformer", NAMES, tokenizer(), tower=tower)
        assert all(p.requires_grad for p in model.parameters())
    whole = OpenVocabulary(residual_clip(), "clip_lora", NAMES, tokenizer(), tower="text").train()
    whole.loss(pictures(), LABELS).backward()
    assert whole.trainable() and all(p.grad is not None for p in whole.trainable())
