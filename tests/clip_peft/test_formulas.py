"""Forward and loss of each method against its formula, worked out from the stock model's own outputs."""

import math
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft import OpenVocabulary
from clip_peft.methods.prograd import projected
from clip_peft.methods.promptsrc import epoch_weights
from clip_peft.text.templates import templates
from tests.clip_peft.models import NAMES, clip, close, pictures, plain, siglip, tokenizer, unit

LABELS = torch.tensor([0, 3, 2, 6])
SCALE = 100.0


def built(method: str, **hyper: Any) -> tuple[Any, Any]:
    model = clip()
    torch.manual_seed(0)
    return model, OpenVocabulary(model, method, NAMES, tokenizer(), **hyper)


def texts(model: Any, template: str = "a photo of a {}.") -> Tensor:
    with torch.no_grad():
        return unit(model.encode_text(tokenizer()([template.format(name) for name in NAMES])))


def faces(model: Any, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.encode_image(pictures() if x is None else x)


def cross_entropy(logits: Tensor) -> Tensor:
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -p[torch.arange(4), LABELS].log().mean()


def test_zero_shot_is_the_models_own():
    model, whole = built("zero_shot")
    close(whole(pictures()), SCALE * unit(faces(model)) @ texts(model).T)
    model, whole = built("zero_shot", template="ensemble")
    reference = open_clip.build_zero_shot_classifier(
        model, tokenizer(), NAMES, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=None, device="cpu"
    )
    close(whole.class_weights(), reference.T)
    assert templates("dtd") == ("{} texture.",) and len(templates("ensemble")) == 80


def test_coop_starts_from_words_and_its_learnt_context_reads_like_them():
    model, whole = built("coop", init="a photo of a")
    close(whole(pictures()), SCALE * unit(faces(model)) @ texts(model).T)
    close(whole.loss(pictures(), LABELS), cross_entropy(SCALE * unit(faces(model)) @ texts(model).T))


def test_kgcoop_loss():
    model, whole = built("kgcoop", weight=8.0)
    with torch.no_grad():
        whole.learner.context.add_(0.1)
    t = unit(plain(model, whole.learner.text_pass.prompts, whole.learner.context))
    expected = cross_entropy(SCALE * unit(faces(model)) @ t.T) + 8 * (1 - (t * texts(model)).sum(1)).mean()
    close(whole.loss(pictures(), LABELS), expected)


def test_cocoop_in_a_batch_is_one_by_one():
    model, whole = built("cocoop")
    learner, f = whole.learner, unit(faces(model))
    assert [tuple(p.shape) for p in learner.meta_net.parameters()] == [(1, 16), (1,), (32, 1), (32,)]
    w1, b1, w2, b2 = learner.meta_net.parameters()
    rows = []
    for one in f:  # one image at a time, all 24 tokens
        context = learner.context + F.relu(one @ w1.T + b1) @ w2.T + b2
        rows.append(SCALE * one @ unit(plain(model, learner.text_pass.prompts, context)).T)
    close(whole(pictures()), torch.stack(rows))
    own = list(learner.parameters())
    whole.loss(pictures(), LABELS).backward()
    for a, b in zip(own, torch.autograd.grad(cross_entropy(torch.stack(rows)), own), strict=True):
        assert float((a.grad - b).abs().max()) <= 2e-5 * float(b.abs().max())


def test_prograd_projection_by_hand():
    away = projected(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]), 1.0)
    assert away.tolist() == [1.0, 0.0]  # what went against (0, 1) is gone
    assert projected(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]), 0.8).tolist() == pytest.approx([1.0, -0.2])
    assert projected(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), 1.0).tolist() == [1.0, 1.0]
    assert projected(torch.tensor([1.0, 1.0]), torch.zeros(2), 1.0).tolist() == [1.0, 1.0]


def test_prograd_gradient():
    model, whole = built("prograd", context=6, strength=0.9)
    learner, f = whole.learner, unit(faces(model))
    assert not learner.context[:2].any()  # zeros, then "a photo of a"
    close(learner.context[2:], model.token_embedding(torch.tensor(tokenizer().encode("a photo of a"))))
    with torch.no_grad():
        learner.context.add_(torch.randn(6, 32, generator=torch.Generator().manual_seed(2)) * 0.3)
    loss = whole.loss(pictures(), LABELS)
    loss.backward()

    def logits() -> Tensor:
        return SCALE * f @ unit(plain(model, learner.text_pass.prompts, learner.context)).T

    close(loss, cross_entropy(logits()))
    (own,) = torch.autograd.grad(cross_entropy(logits()), learner.context)
    teacher = (SCALE * f @ texts(model).T).softmax(1)
    (general,) = torch.autograd.grad(-(teacher * logits().log_softmax(1)).sum(1).mean(), learner.context)
    inner = (own * general).sum()
    expected = own if inner >= 0 else own - 0.9 * inner / general.square().sum() * general
    assert float((learner.context.grad - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_clip_adapter():
    model, whole = built("clip_adapter", ratio=0.3)
    f, (down, up) = faces(model), whole.learner.parameters()
    assert down.shape == (4, 16) and up.shape == (16, 4)
    mixed = 0.3 * (f @ down.T).clamp(min=0).matmul(up.T).clamp(min=0) + 0.7 * f
    close(whole(pictures()), SCALE * unit(mixed) @ texts(model).T)


def test_tip_adapter():
    model, whole = built("tip_adapter", alpha=2.0, beta=3.0)
    views = torch.stack([faces(model, pictures(4) + shift) for shift in (0.0, 0.3)])
    whole.learner.remember(views, LABELS)
    keys, f = unit(views.mean(0)), unit(faces(model))
    cache = torch.exp(-3 * (1 - f @ keys.T)) @ F.one_hot(LABELS, len(NAMES)).float()
    close(whole(pictures()), SCALE * f @ texts(model).T + 2 * cache)
    assert not whole.trainable()


def raw_texts(model: Any) -> Tensor:
    with torch.no_grad():
        return model.encode_text(tokenizer()([f"a photo of a {name}." for name in NAMES]))


def test_taskres_adds_to_features_as_the_tower_gives_them():
    model, whole = built("taskres", alpha=0.5)
    with torch.no_grad():
        whole.learner.residual.normal_()
    expected = SCALE * unit(faces(model)) @ unit(raw_texts(model) + 0.5 * whole.learner.residual).T
    close(whole(pictures()), expected)


def test_linear_probe_turns_raw_rows_and_compares_unit_ones():
    model, whole = built("linear_probe")
    close(whole.learner.weight, raw_texts(model))
    close(whole(pictures()), SCALE * unit(faces(model)) @ texts(model).T)
    with torch.no_grad():
        whole.learner.weight.mul_(2)
    close(whole(pictures()), SCALE * unit(faces(model)) @ texts(model).T)
    model, whole = built("linear_probe", normalise=False)
    with torch.no_grad():
        whole.learner.weight.mul_(2)
    close(whole(pictures()), 2 * SCALE * unit(faces(model)) @ texts(model).T)


def test_linear_probe_falls_at_the_published_rate_and_scale():
    _, whole = built("linear_probe")
    optimizer, losses = torch.optim.SGD(whole.trainable(), lr=0.1, momentum=0.9), []
    for _ in range(30):
        losses.append(loss := whole.loss(pictures(), LABELS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0] and max(losses) <= 1.5 * losses[0]


def image_pass(model: Any, prompts: list[Tensor]) -> Tensor:
    """open_clip's image tower with tokens behind the patches: the first before ln_pre, then replaced block by block."""
    visual, x = model.visual, model.visual.conv1(pictures()).flatten(2).transpose(1, 2)
    count = prompts[0].shape[0]
    x = torch.cat((visual.class_embedding.expand(len(x), 1, -1), x), dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat((x, prompts[0].expand(len(x), -1, -1)), dim=1))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(prompts):
            x = torch.cat((x[:, :-count], prompts[i].expand(len(x), -1, -1)), dim=1)
        x = block(x)
    return visual.ln_post(x)[:, 0] @ visual.proj


def test_maple():
    model, whole = built("maple", depth=2)
    learner = whole.learner
    assert learner.template == "of a {}." and learner.context.shape == (2, 32)
    prompts = [f(p) for f, p in zip(learner.project, [learner.context, *learner.deep], strict=True)]
    f = unit(image_pass(model, prompts))
    t = unit(plain(model, learner.text_pass.prompts, learner.context, tuple(learner.deep)))
    close(whole(pictures()), SCALE * f @ t.T)
    close(model.encode_image(pictures()), faces(model))  # nothing stays in the tower


def test_promptsrc_loss_and_average():
    model, whole = built("promptsrc", depth=2, template="a photo of a {}.", mean=2.0, deviation=1.0)
    learner = whole.learner
    f, f0, h = unit(image_pass(model, list(learner.image_prompts))), unit(faces(model)), texts(model)
    t = unit(plain(model, learner.text_pass.prompts, learner.context, tuple(learner.deep)))
    logits, teacher = SCALE * f @ t.T, SCALE * f0 @ h.T
    q = teacher.softmax(1)
    near = (q * (q.log() - logits.log_softmax(1))).sum() / logits.numel()
    expected = cross_entropy(logits) + 25 * (t - h).abs().mean() + 10 * (f - f0).abs().mean() + near
    close(whole.loss(pictures(), LABELS), expected)
    values = []
    for epoch in (1, 2, 3):
        with torch.no_grad():
            learner.context.fill_(float(epoch**2))
        values.append(float(epoch**2))
        whole.end_epoch(epoch, 3)
    side = math.exp(-0.5)
    close(learner.context[0, :1], torch.tensor([(side * 1 + 4 + side * 9) / (1 + 2 * side)]))
    assert sum(epoch_weights(20, 15.0, 1.0)) == pytest.approx(1) and sum(epoch_weights(3, 99.0, 0.1)) == pytest.approx(
        1
    )


def test_tpt_step_by_hand():
    model, whole = built("tpt", confident=0.3, lr=0.01)
    x = pictures(2)
    views = torch.cat(
        (x[:, None], x[:, None] + torch.randn(2, 9, 3, 32, 32, generator=torch.Generator().manual_seed(1))), 1
    )
    got, learner = whole(views), whole.learner
    model.requires_grad_(False)
    for one, row in zip(views, got, strict=True):  # one picture at a time
        f, context = unit(faces(model, one)), learner.context.detach().clone().requires_grad_()
        p = (SCALE * f @ unit(plain(model, learner.text_pass.prompts, context)).T).softmax(1)
        kept = sorted(range(10), key=lambda i: -(p[i] * p[i].log()).sum().item())[:3]
        mean = p[kept].mean(0)
        (g,) = torch.autograd.grad(-(mean * mean.log()).sum(), context)
        # the first AdamW step: decay by lr · 0.01, then lr · g/(|g| + 1e-8)
        stepped = context * (1 - 0.01 * 0.01) - 0.01 * g / (g.abs() + 1e-8)
        expected = SCALE * f[0] @ unit(plain(model, learner.text_pass.prompts, stepped)).T
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(whole(views), got)  # nothing is kept


def test_a_step_of_coop_on_a_bidirectional_tower():
    model = siglip()
    whole = OpenVocabulary(model, "coop", NAMES, tokenizer(), init="a photo of a")
    reference = unit(model.encode_text(tokenizer()([f"a photo of a {name}." for name in NAMES])))
    close(whole(pictures()), model.logit_scale.exp() * unit(faces(model)) @ reference.T)
