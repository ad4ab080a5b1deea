"""CLIP methods on cached features and at test time against what their official code computes: logits, losses, steps.

`golden/clip_features.json` was made by running functions and classes of these repositories in float64 on CPU with the features
of `clip_model` (20 training pictures of five classes in four views; views of two pictures; a stream of thirty). Mapped for that:
half and float32 casts taken out, `.cuda()` a no-op, image encoders that give the features as they are, a width of 32 where 512
stands, LP++'s bias from zero, APE-T's two numbers of channels alike (its class takes the other one's otherwise).
Repositories: mrflogs/ICLR24 560fe21 (GDA, few-shot and base-to-new scripts), FereshteShakeri/FewShot-CLIP-Strong-Baseline f81054f
(LP++), jusiro/CLAP dbdf409, astra-vision/ProLIP b43e795, yangyangyang127/APE 70460de, MaxZanella/MTA cafafdf,
FarinaMatteo/zero c609f7c, kdiAAA/TDA e697fb0, elaine-sui/TPS 556db0f, azshue/TPT 63ecbac (AugMix),
sunxm2357/DualCoOp 49e71d7 (a ResNet of four blocks; its fixed scale 100 is the model's).
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft_data.augmix import Chance, mixed
from PIL import Image
from torch import Tensor

from clip_peft import OpenVocabulary
from clip_peft.methods.zero import votes
from tests.parity.clip_model import LABELS, NAMES, model, noise, pictures, same, sketch

FILE = Path(__file__).parent / "golden" / "clip_features.json"
GOLDEN: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
OTHERS = ["zebra", "blue triangle", "an old wooden boat"]


@functools.cache
def shots(projected: bool = True) -> Tensor:
    """Four views of twenty pictures."""
    whole = OpenVocabulary(model(), "zero_shot" if projected else "prolip", NAMES)
    return torch.stack([whole.encode(noise(f"shot {k}", 20, 3, 32, 32)) for k in range(4)]).detach()


def told(method: str, views: int = 4, **hyper: Any) -> Any:
    whole = OpenVocabulary(model(), method, NAMES, **hyper)
    whole.learner.double()
    whole.learner.remember(shots(whole.learner.projected)[:views], torch.arange(20) % 5)
    return whole


def test_gda():
    whole, features = told("gda"), OpenVocabulary(model(), "zero_shot", NAMES).encode(pictures())
    found = {f"{at['alpha']:g}": logits for at, logits in list(whole.learner.choices(features))[1:]}
    for alpha, logits in GOLDEN["gda"]["logits"].items():
        same(found[f"{float(alpha):g}"], logits, 1e-5)
    same(told("gda", alpha=10.0)(pictures()), GOLDEN["gda"]["logits"]["10.0"], 1e-5)


def test_gda_of_new_names():
    whole = told("gda", alpha=0.01).set_classes(OTHERS)
    shift = 0.01 * (
        torch.tensor(5.0).log() - torch.tensor(3.0).log()
    )  # their prior is one of three there, of five here
    same(whole(pictures()) + shift, GOLDEN["gda new"]["logits"], 1e-5)


def test_lp_plus_plus_trains():
    whole, losses = told("lp_plus_plus", views=1), []
    learner, features = whole.learner, shots()[0]
    optimizer = torch.optim.SGD(list(learner.parameter_groups(1.0, 0.0)), momentum=0.9)
    for step in range(25):
        loss = learner.loss(features, torch.arange(20) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            learner.after_step(step + 1)
        losses.append(loss.item())
    golden = GOLDEN["lp_plus_plus"]
    same(losses, golden["losses"])
    same(sketch(learner.weight), golden["weight"])
    same(learner.bias, golden["bias"])
    same(learner.alpha, golden["alpha"])


def test_clap_trains():
    whole, golden, losses = told("clap"), GOLDEN["clap"], []
    weight, features = whole.learner.weight, whole.encode(pictures())
    same(whole.learner.multipliers, golden["multipliers"])
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for step in range(6):
        loss = whole.learner.loss(features, LABELS)
        optimizer.zero_grad()
        loss.backward()
        if not step:
            same(sketch(weight.grad), golden["gradient"])
        optimizer.step()
        losses.append(loss.item())
    same(losses, golden["losses"])
    same(whole(pictures()), golden["logits"])


def test_prolip_trains():
    """Five steps of Adam with ε 1e-4, cosine by step, a view each."""
    whole, golden = told("prolip", strength=0.25), GOLDEN["prolip"]
    learner = whole.learner
    optimizer = torch.optim.Adam(list(learner.parameter_groups(1e-3, 0.0)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for step in range(5):
        loss = learner.loss(shots(False)[(step + 1) % 3], torch.arange(20) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert golden["moved"] > 1e-3
    same(sketch(learner.weight), golden["weight"])
    same(whole(pictures()), golden["logits"])
    assert OpenVocabulary(model(), "prolip", NAMES).learner.loss(shots(False)[0], torch.arange(20) % 5) > 0
    assert told("prolip").learner.shots == 4  # whose inverse is the default strength


def test_ape():
    whole = told("ape", alpha=1.5, beta=2.0, gamma=0.4)
    same(whole(pictures()), GOLDEN["ape"]["logits"])


def test_ape_trains():
    whole, golden = told("ape", alpha=1.5, beta=2.0, fine_tune=True), GOLDEN["ape_t"]
    learner, features = whole.learner, whole.encode(pictures())
    same(whole(pictures()), golden["first"])
    optimizer = torch.optim.AdamW(list(learner.parameter_groups(1e-2, 0.1)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        loss = learner.loss(features, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    same(whole(pictures()), golden["logits"])
    same(learner.strength[(torch.arange(20) % 5).argsort(stable=True)], golden["strength"])
    same(sketch(torch.zeros(5, 32).double().index_add(1, learner.places, learner.residual)), golden["residual"])


def views() -> Tensor:
    return noise("views", 40, 3, 32, 32).mul(1.5).unflatten(0, (2, 20))


@pytest.mark.parametrize("method, case", [("mta", GOLDEN["mta"]["logits"]), ("tps", GOLDEN["tps"]["1"])])
def test_views(method: str, case: Any):
    whole = OpenVocabulary(model(), method, NAMES)
    same(whole(views()), case, 1e-5)


@pytest.mark.parametrize("share", GOLDEN["zero"])
def test_zero_votes_and_breaks_ties(share: str):
    whole = OpenVocabulary(model(), "zero", NAMES)
    found = votes(whole.learner.clip.compare(noise("zero", 12, 20, 32), whole.class_weights()), float(share))
    assert found.tolist() == GOLDEN["zero"][share]
    count = int(20 * float(share))
    assert 0 < int((found.sum(-1) > count).sum()) < 12  # some were ties


@pytest.mark.parametrize("case, views, low", [("tda", 1, 0.05), ("tda views", 10, 0.0)])
def test_tda_along_a_stream(case: str, views: int, low: float):
    whole = OpenVocabulary(model(), "tda", NAMES, shots=2, unsure=(low, 0.6), views=views)
    stream = noise("stream", 30, 3, 32, 32)
    if views > 1:
        stream = stream.unflatten(0, (3, 10))
    parts = [whole(part) for part in stream.split(7)]
    same(torch.cat(parts), GOLDEN[case]["logits"])
    whole.learner.begin()
    same(whole(stream[:7]), GOLDEN[case]["logits"][:7])


def test_augmix():
    pixels = ((noise("augmix", 24, 24, 3) / 3.5 + 0.5) * 255).clamp(0, 255).byte().numpy()
    for seed, expected in enumerate(GOLDEN["augmix"]["sketches"]):
        found = mixed(Image.fromarray(pixels), Chance(seed))
        assert found.dtype == np.float32
        same(sketch(torch.from_numpy(found).permute(0, 1, 2)), expected, 1e-5)


def test_training_free_methods_use_no_backward(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a backward")

    monkeypatch.setattr(torch.autograd, "backward", refuse)
    for method in ("mta", "zero", "tda"):
        whole = OpenVocabulary(model(), method, NAMES, **({"views": 1} if method == "tda" else {}))
        logits = whole(pictures() if method == "tda" else views())
        assert not logits.requires_grad and F.softmax(logits, -1).isfinite().all()
    with pytest.raises(AssertionError, match="a backward"):
        OpenVocabulary(model(), "tps", NAMES)(views())


RESIDUAL = dict(image_size=64, layers=(1, 1, 1, 1), width=8, patch_size=None)
SEVERAL = torch.tensor([[1, 0, 0, 1, -1], [0, 0, 1, -1, 0], [1, 1, 0, 0, 0], [0, -1, 0, 0, 1]])


@pytest.mark.parametrize(
    "case, hyper, side",
    [("one", dict(context=3, negative_context=4), 64), ("each label", dict(context=2, class_specific=True), 64),
     ("larger pictures", dict(context=4), 96)],
)  # fmt: skip
def test_dual_coop(case: str, hyper: dict[str, Any], side: int):
    golden = GOLDEN[f"dual_coop {case}"]
    whole = OpenVocabulary(model(RESIDUAL), "dual_coop", NAMES, **hyper)
    learner: Any = whole.learner.double()
    for name, p in learner.named_parameters():
        with torch.no_grad():
            p.copy_(0.5 * noise(name, *p.shape))
    x = noise(f"images {side}", 4, 3, side, side)
    same(whole(x), golden["logits"])
    loss = whole.loss(x, SEVERAL)
    same(loss, golden["loss"])
    loss.backward()
    for name, p in learner.named_parameters():
        same(sketch(p.grad), golden["gradients"][name], 2e-5)
    torch.optim.SGD(learner.parameters(), lr=0.002, momentum=0.9).step()
    same(whole.loss(x, SEVERAL), golden["stepped"])
