"""CLIP methods against what their official code computes: logits, loss, gradients, a step.

`golden/clip.json` was made by running the repositories' own classes in float64 on CPU, with the weights, pictures and learnt
values of `clip_model` (logit scale 100, ln_pre, QuickGELU; five classes, four pictures). Mapped for that: casts to half and to
float32 (their LayerNorm's) taken out, `.cuda()` a no-op, Dassl's registries empty classes, widths 512 / 768 / 1024 that stand
in a class (MaPLe, CLIP-Adapter) those of the tiny model. Gradients are kept as six products with fixed directions (`sketch`).
Repositories: KaiyangZhou/CoOp ff61507 (CoOp, CoCoOp), htyao89/KgCoOp c43ccc3, BeierZhu/Prompt-align 1b76203 (ProGrad, with the
step of its copy of Dassl), muzairkhattak/multimodal-prompt-learning 69bce21 (MaPLe), muzairkhattak/PromptSRC bb95c77,
azshue/TPT 63ecbac, gaopengcuhk/CLIP-Adapter 08d07f8, gaopengcuhk/Tip-Adapter d0e2d6f, geekyutao/TaskRes 5195359,
jusiro/CLAP dbdf409 (ZS-LP), MaxZanella/CLIP-LoRA 358f0d7, chunmeifeng/DiffTPT 03f1169 (its choice and steps, around `coop`).
"""

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft import OpenVocabulary
from clip_peft.methods.promptsrc import epoch_weights
from clip_peft.text.templates import templates
from clip_peft.training.job import resolved
from peft_core.registry import make_method
from tests.parity.clip_model import GOLDEN, LABELS, NAMES, model, noise, pictures, same, sketch

TEMPLATE = "a photo of a {}."


@functools.cache
def stock() -> dict[str, Tensor]:
    return model().state_dict()


def built(method: Any, **hyper: Any) -> Any:
    clip = model()
    whole = OpenVocabulary(clip, method, NAMES, **hyper)
    whole.learner.double()
    return whole


def put(parameter: Tensor, name: str, size: float, add: bool = False) -> None:
    with torch.no_grad():
        value = size * noise(name, *parameter.shape)
        parameter.copy_(parameter + value if add else value)


def compare(whole: Any, case: str, parameters: Mapping[str, Tensor], labels: Tensor = LABELS) -> None:
    """Logits, loss and gradients."""
    golden, x = GOLDEN[case], pictures()
    same(whole(x), golden["logits"])
    loss = whole.loss(x, labels)
    same(loss, golden["loss"])
    loss.backward()
    assert set(golden["gradients"]) == set(parameters)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        same(sketch(parameter.grad), golden["gradients"][name], 2e-5)


def test_the_model_is_the_official_one():
    whole = built("zero_shot", template=TEMPLATE)
    same(whole(pictures()) / 100, GOLDEN["stock"]["logits"])
    texts, faces = GOLDEN["stock"]["norms"]
    same(whole.learner.text_passes[0]().norm(dim=-1), texts)
    same(whole.encode(pictures()).norm(dim=-1), faces)


@pytest.mark.parametrize(
    "case, hyper",
    [("end", dict(context=4)), ("middle", dict(context=5, position="middle")), ("front", dict(context=4, position="front")),
     ("each class", dict(context=3, class_specific=True))],
)  # fmt: skip
def test_coop(case: str, hyper: dict[str, Any]):
    whole = built("coop", **hyper)
    put(whole.learner.context, "context", 0.5)
    compare(whole, f"coop {case}", {"context": whole.learner.context})


def test_coop_starts_from_all_words_of_its_init():
    whole = built("coop", init="a centered satellite photo of a")
    context, golden = whole.learner.context, GOLDEN["coop words"]
    assert list(context.shape) == golden["shape"]
    same(sketch(context), golden["start"])
    put(context, "context", 0.2, add=True)
    compare(whole, "coop words", {"context": context})


def test_cocoop():
    whole = built("cocoop")
    learner, (w1, b1, w2, b2) = whole.learner, whole.learner.meta_net.parameters()
    same(sketch(learner.context), GOLDEN["cocoop"]["start"])
    put(learner.context, "context", 0.2, add=True)
    for parameter, name in ((w1, "linear1.weight"), (b1, "linear1.bias"), (w2, "linear2.weight"), (b2, "linear2.bias")):
        put(parameter, f"meta {name}", 0.3)
    compare(whole, "cocoop", {"context": learner.context, "w1": w1, "b1": b1, "w2": w2, "b2": b2})


@pytest.mark.parametrize("data, theirs", [("oxford_pets", "OxfordPets"), ("dtd", "DescribableTextures")])
def test_kgcoop_with_its_own_templates(data: str, theirs: str):
    whole = built(resolved(make_method("kgcoop"), None, f"coop/{data}")[0])
    context = whole.learner.context
    same(sketch(context), GOLDEN[f"kgcoop {theirs}"]["start"])
    put(context, "context", 0.2, add=True)
    golden = GOLDEN[f"kgcoop {theirs}"]
    compare(whole, f"kgcoop {theirs}", {"context": context})
    assert golden["loss"] > 0


@pytest.mark.parametrize(
    "data, case, strength, against",
    [("imagenet", "ImageNet 1 context", 1.0, False), ("imagenet", "ImageNet 1 against", 1.0, True),
     ("imagenet", "ImageNet 0.8 against", 0.8, True), ("oxford_pets", "OxfordPets 1 context", 1.0, False),
     ("dtd", "DescribableTextures 1 against", 1.0, True)],
)  # fmt: skip
def test_prograd_step_with_its_own_templates(data: str, case: str, strength: float, against: bool):
    golden = GOLDEN[f"prograd {case}"]
    whole = built(resolved(make_method("prograd", strength=strength), None, f"coop/{data}")[0])
    context = whole.learner.context
    same(sketch(context), golden["start"])
    assert (golden["inner"] < 0) == against
    put(context, "against" if against else "context", 0.05 if against else 0.3, add=True)
    compare(whole, f"prograd {case}", {"context": context}, torch.tensor(golden["labels"]))


@pytest.mark.parametrize("depth, context", [(1, 2), (2, 2), (3, 4)])
def test_maple(depth: int, context: int):
    whole = built("maple", depth=depth, context=context)
    learner, case = whole.learner, f"maple {depth} {context}"
    same(sketch(learner.context), GOLDEN[case]["start"])
    put(learner.context, "context", 0.2, add=True)
    parameters = {"context": learner.context}
    for i, parameter in enumerate(learner.deep):
        put(parameter, f"deep {i}", 0.5)
        parameters[f"deep {i}"] = parameter
    for i, layer in enumerate(learner.project):
        put(layer.weight, f"project {i}", 0.1)
        put(layer.bias, f"bias {i}", 0.1)
        parameters |= {f"project {i}": layer.weight, f"bias {i}": layer.bias}
    compare(whole, case, parameters)


@pytest.mark.parametrize("depth, context, image_tokens, template", [
    (1, 4, 4, ["a photo of a {}.", "a bad photo of a {}.", "a photo of many {}."]), (2, 4, 3, "ensemble60"),
    (3, 2, 4, ["a photo of a {}.", "a bad photo of a {}.", "a photo of many {}."]),
])  # fmt: skip
def test_promptsrc(depth: int, context: int, image_tokens: int, template: Any):
    whole = built("promptsrc", depth=depth, context=context, image_tokens=image_tokens, template=template)
    learner, case = whole.learner, f"promptsrc {depth} {context} {image_tokens}"
    same(sketch(learner.context), GOLDEN[case]["start"])
    put(learner.context, "context", 0.2, add=True)
    parameters = {"context": learner.context}
    for kind, own in (("deep", learner.deep), ("image", learner.image_prompts)):
        for i, parameter in enumerate(own):
            put(parameter, f"{kind} {i}", 0.5)
            parameters[f"{kind} {i}"] = parameter
    compare(whole, case, parameters)


def test_promptsrc_averages_epochs_as_there():
    same(epoch_weights(20, 15.0, 1.0), GOLDEN["promptsrc weights"]["weights"], 1e-9)
    assert len(templates(make_method("promptsrc").template)) == 60


@pytest.mark.parametrize("confident, steps", [(0.1, 1), (0.3, 2)])
def test_tpt(confident: float, steps: int):
    whole = built("tpt", confident=confident, steps=steps)
    golden = GOLDEN[f"tpt {confident} {steps}"]
    with torch.no_grad():
        found = whole(noise("views", 2, 20, 3, 32, 32))
    same(found, golden["logits"], 1e-4)  # AdamW's first step makes the least gradient as large as any
    assert golden["moved"] > 1


@pytest.mark.parametrize("similar, confident, steps", [(0.8, 0.3, 4), (0.5, 0.2, 1)])
def test_diff_tpt(similar: float, confident: float, steps: int):
    whole = built("diff_tpt", similar=similar, confident=confident, steps=steps)
    golden = GOLDEN[f"diff_tpt {similar} {steps}"]
    with torch.no_grad():
        found = whole(noise("views", 2, 20, 3, 32, 32))
    same(found, golden["logits"], 1e-4)  # as for tpt
    assert golden["moved"] > 1


def test_clip_adapter():
    whole = built("clip_adapter", template=TEMPLATE)
    down, up = whole.learner.parameters()
    put(down, "down", 0.5)
    put(up, "up", 0.5)
    compare(whole, "clip_adapter", {"down": down, "up": up})


def tip_adapter(**hyper: Any) -> Any:
    whole = built("tip_adapter", template=[TEMPLATE, "a {} in the snow."], **hyper)
    views = torch.stack([whole.encode(noise(f"view {i}", 6, 3, 32, 32)) for i in range(3)])
    whole.learner.remember(views, torch.tensor([0, 1, 2, 3, 4, 0]))
    whole.learner.double()
    return whole


@pytest.mark.parametrize("alpha, beta", [(1.17, 1.0), (3.0, 5.5)])
def test_tip_adapter(alpha: float, beta: float):
    whole = tip_adapter(alpha=alpha, beta=beta)
    same(sketch(whole.learner.keys), GOLDEN["tip_adapter keys"]["sketch"])
    same(sketch(whole.class_weights()), GOLDEN["tip_adapter keys"]["weights"])
    same(whole(pictures()), GOLDEN[f"tip_adapter {alpha} {beta}"]["logits"])
    same(whole.loss(pictures(), LABELS), GOLDEN[f"tip_adapter {alpha} {beta}"]["loss"])


@pytest.mark.parametrize("eps", [1e-4, 1e-8])  # theirs, and the one that trains here
def test_tip_adapter_f_steps(eps: float):
    whole, golden = tip_adapter(fine_tune=True), GOLDEN[f"tip_adapter_f {eps:g}"]
    keys = whole.learner.keys
    optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=eps)
    losses = []
    for step in range(3):
        loss = whole.loss(pictures(), LABELS)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            same(sketch(keys.grad), golden["gradients"]["keys"], 2e-5)
        optimizer.step()
        losses.append(loss.item())
    same(losses, golden["losses"])
    same(sketch(keys), golden["keys"])


@pytest.mark.parametrize(
    "data, theirs, alpha", [("oxford_flowers", "OxfordFlowers", 1.0), ("imagenet", "ImageNet", 0.5)]
)
def test_taskres_with_a_residual(data: str, theirs: str, alpha: float):
    whole = built(resolved(make_method("taskres", alpha=alpha), None, f"coop/{data}")[0])
    put(whole.learner.residual, "residual", 0.3)
    compare(whole, f"taskres {theirs}", {"residual": whole.learner.residual})


def test_linear_probe_is_zs_lp():
    whole = built("linear_probe", template=TEMPLATE)
    weight = whole.learner.weight
    same(sketch(weight), GOLDEN["linear_probe start"]["start"])
    compare(whole, "linear_probe start", {"weight": weight})
    golden, features = GOLDEN["linear_probe 30 steps"], whole.encode(pictures())
    optimizer, losses = torch.optim.SGD([weight], lr=0.1, momentum=0.9), []
    for _ in range(30):
        loss = whole.learner.loss(features, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    same(losses, golden["losses"], 1e-5)
    same(whole(pictures()), golden["logits"], 1e-4)


def clip_lora(**hyper: Any) -> tuple[Any, dict[str, Tensor]]:
    """With every A and B away from its start, by the official names: `transformer.resblocks.0.attn.q.A`."""
    whole = built("clip_lora", template=TEMPLATE, **hyper)
    named = {name.replace("peft.lora.", ""): p for name, p in whole.model.named_parameters() if ".peft." in name}
    for name, parameter in named.items():
        parameter.data = (0.2 if name.endswith("A") else 0.3) * noise(name, *parameter.shape)
    return whole.train(), named


def test_clip_lora():
    whole, named = clip_lora(dropout=0.0)
    compare(whole, "clip_lora", named)


def test_clip_lora_dropout_in_distribution():
    """Each class draws its own: the loss's mean and spread, each logit's, and how far two classes of one draw go together."""
    whole, _ = clip_lora()
    golden, x, losses, logits = GOLDEN["clip_lora dropout"], pictures(), [], []
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(150):
            logits.append(whole(x))
            losses.append(F.cross_entropy(logits[-1], LABELS))
    loss, logit = torch.stack(losses), torch.stack(logits)
    mean, deviation = torch.tensor(golden["logit_mean"]), torch.tensor(golden["logit_deviation"])
    assert abs(loss.mean() - golden["mean"]) < 3.5 * golden["deviation"] / len(losses) ** 0.5
    assert abs(loss.std() / golden["deviation"] - 1) < 0.25
    assert float(((logit.mean(0) - mean).abs() / deviation).max()) < 4 / len(losses) ** 0.5
    assert float((logit.std(0) / deviation - 1).abs().max()) < 0.3
    assert float((torch.corrcoef(logit[:, 0].T) - torch.tensor(golden["correlation"])).abs().max()) < 0.25
