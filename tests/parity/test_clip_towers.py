"""CLIP methods that change what happens inside the towers, against their official code: logits, loss, gradients, a step.

`golden/clip_towers.json` was made as `golden/clip.json` was (`test_clip_methods`): the repositories' own classes in float64,
with the weights, pictures and learnt values of `clip_model`. Repositories: FarinaMatteo/rethinking_fewshot_vlms 64ac143 (2SFS:
all norms of their optimiser's list train, of which their code freezes ln_pre, ln_post and ln_final again; no weight decay in
the first stage, where ours spares vectors), minglllli/CLIPFit 4dde049, ZjjConan/VLM-MultiModalAdapter c3d0bc2 (MMA: blocks 2
and 3, width 8, scale 0.3), htyao89/Textual-based_Class-aware_prompt_tuning bd97bec (TCP: its block 8 is 1, its width 512 is 64),
Koorye/DePT d4ff416 (on KgCoOp, MaPLe and CoCoOp), yunncheng/MMRL 27d8821 (MMRL and MMRL++: blocks 2 and 3, two tokens of width
8), ShuvenduRoy/CoPrompt a2a6c12 (GPT-3's texts are three templates here, of which the second one is drawn).
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip_peft import OpenVocabulary
from clip_peft.training.job import resolved
from peft_core.registry import make_method
from tests.parity.clip_model import LABELS, NAMES, model, noise, pictures, same, sketch

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "clip_towers.json").read_text(encoding="utf-8"))


def built(method: Any, **hyper: Any) -> OpenVocabulary:
    whole = OpenVocabulary(model(), method, NAMES, **hyper)
    whole.learner.double()
    return whole


def put(parameter: Tensor, name: str, size: float, add: bool = False) -> None:
    with torch.no_grad():
        value = size * noise(name, *parameter.shape)
        parameter.copy_(parameter + value if add else value)


def trained(whole: OpenVocabulary) -> dict[str, Tensor]:
    """What trains in the model, by its stock name, in the order of names."""
    return dict(sorted((name, p) for name, p in whole.model.named_parameters() if p.requires_grad))


def backward(whole: OpenVocabulary) -> Tensor:
    loss = whole.loss(pictures(), LABELS)
    loss.backward()
    return loss


def together(parameters: dict[str, Tensor]) -> Tensor:
    return sketch(torch.cat([p.grad.flatten() for p in parameters.values()]))  # type: ignore[union-attr]


def test_two_stage():
    golden = GOLDEN["two_stage"]
    whole = built("two_stage")
    norms = trained(whole)
    assert sum(p.numel() for p in norms.values()) == golden["count"]
    whole.learner.before_step(0, 10)
    same(backward(whole), golden["loss"])
    same(together(norms), golden["gradient"], 2e-5)
    assert whole.learner.classifier.grad is None
    torch.optim.AdamW(norms.values(), lr=2e-2, weight_decay=0.0).step()
    for p in norms.values():
        p.grad = None
    whole.learner.before_step(6, 10)
    second = golden["second"]
    same(whole(pictures()), second["logits"])
    same(backward(whole), second["loss"])
    assert all(p.grad is None for p in norms.values())
    same(sketch(whole.learner.classifier.grad), second["gradient"], 2e-5)
    torch.optim.AdamW([whole.learner.classifier], lr=2e-2, weight_decay=1e-2).step()
    same(whole(pictures()), golden["stepped"])
    whole.set_classes(["zebra", NAMES[3], NAMES[0], "okapi"])
    with torch.no_grad():  # theirs does not normalise the features of new names before it stacks them: the same after
        same(whole(pictures()), golden["infer"])


def test_clip_fit():
    golden = GOLDEN["clip_fit"]
    whole = built(resolved(make_method("clip_fit"), None, "coop/dtd")[0])
    parameters = trained(whole)
    assert sum(p.numel() for p in parameters.values()) == golden["count"]
    for name, p in parameters.items():
        put(p, f"fit {name}", 0.1, add=True)
    same(whole(pictures()), golden["logits"])
    same(backward(whole), golden["loss"])
    same(together(parameters), golden["gradient"], 2e-5)
    torch.optim.SGD(parameters.values(), lr=2e-3, momentum=0.9).step()
    same(whole.loss(pictures(), LABELS), golden["stepped"])


def test_mma():
    golden = GOLDEN["mma"]
    whole = built("mma", width=8, scale=0.3, first=2, last=3)
    theirs = {"text": "transformer.resblocks", "visual": "visual.transformer.resblocks"}
    parameters = {}
    for kind, path in theirs.items():
        for block in (2, 3):
            layer = whole.model.get_submodule(f"{path}.{block - 1}")
            (branch,) = [m for m in layer.modules() if type(m).__name__ == "_Adapter"]
            for part in ("down", "up"):
                for name, p in getattr(branch, part).named_parameters():
                    parameters[f"{kind} {block} {part} {name}"] = p
            parameters |= {f"shared {block} {name[2:]}": p for name, p in branch.shared().named_parameters()}
    assert set(parameters) == set(golden["gradients"])
    assert len({id(p) for p in parameters.values()}) == len(whole.trainable())
    for name, p in parameters.items():
        put(p, f"mma {name}", 0.3)
    same(whole(pictures()), golden["logits"])
    same(backward(whole), golden["loss"])
    for name, p in parameters.items():
        same(sketch(p.grad), golden["gradients"][name], 2e-5)
    torch.optim.SGD(parameters.values(), lr=1.5e-3, momentum=0.9).step()
    same(whole.loss(pictures(), LABELS), golden["stepped"])


def test_tcp():
    golden = GOLDEN["tcp"]
    whole = built(resolved(make_method("tcp", layer=1), None, "coop/oxford_pets")[0])
    assert whole.method.behind == "{}, a type of pet."
    learner: Any = whole.learner
    same(sketch(learner.context), golden["start"])
    same(sketch(learner.hand), golden["hand"])
    first, _, second = learner.meta_net
    parameters = {"context": learner.context, "meta linear1.weight": first.weight, "meta linear1.bias": first.bias,
                  "meta linear2.weight": second.weight, "meta linear2.bias": second.bias}  # fmt: skip
    put(learner.context, "context", 0.2, add=True)
    for name, p in list(parameters.items())[1:]:
        put(p, f"tcp {name}", 0.3)
    same(whole(pictures()), golden["logits"])
    same(backward(whole), golden["loss"])
    for name, p in parameters.items():
        same(sketch(p.grad), golden["gradients"][name], 2e-5)
    torch.optim.Adam(parameters.values(), lr=2e-3, eps=1e-3).step()
    same(whole.loss(pictures(), LABELS), golden["stepped"])


def test_dept_clip():
    golden = GOLDEN["dept"]
    whole = built(resolved(make_method("dept_clip"), None, "coop/dtd")[0])
    learner: Any = whole.learner
    same(sketch(learner.context), golden["start"])
    parameters = {"context": learner.context}
    for kind, part in (("text", learner.of_texts), ("picture", learner.of_pictures), ("head", learner.head)):
        parameters |= {f"{kind} {name}": p for name, p in part.named_parameters()}
    assert set(parameters) == set(golden["gradients"])
    put(learner.context, "context", 0.2, add=True)
    for name, p in list(parameters.items())[1:]:
        put(p, f"dept {name}", 0.3, add="scale" in name)
    same(whole(pictures()), golden["logits"])
    same(whole.set_classes([*NAMES, "zebra"])(pictures())[:, :-1], golden["new"])
    whole.set_classes(NAMES)
    same(backward(whole), golden["loss"])
    for name, p in parameters.items():
        same(sketch(p.grad), golden["gradients"][name], 2e-5)
    groups = [
        {key: value for key, value in g.items() if key != "weight_decay"} for g in learner.parameter_groups(3.5e-3, 0.0)
    ]
    torch.optim.SGD(groups, momentum=0.9).step()
    same(whole.loss(pictures(), LABELS), golden["stepped"])


@pytest.mark.parametrize("prompt, depth", [("coupled", 3), ("conditional", 9)])
def test_dept_beside_other_prompts(prompt: str, depth: int):
    golden = GOLDEN[f"dept {prompt}"]
    whole = built("dept_clip", prompt=prompt, depth=depth)
    learner: Any = whole.learner
    same(sketch(learner.context), golden["start"])
    parameters = {"context": learner.context}
    if prompt == "coupled":
        parameters |= {f"deep {i}": p for i, p in enumerate(learner.deep)}
        for i, layer in enumerate(learner.project):
            parameters |= {f"project {i}": layer.weight, f"bias {i}": layer.bias}
    else:
        theirs = ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
        own = zip(theirs, learner.meta_net.parameters(), strict=True)
        parameters |= {f"meta {name}": p for name, p in own}
    head = {"text": learner.of_texts, "picture": learner.of_pictures, "head": learner.head}
    parameters |= {f"{kind} {name}": p for kind, part in head.items() for name, p in part.named_parameters()}
    assert set(parameters) == set(golden["gradients"])
    for name, p in parameters.items():
        if name.startswith(tuple(head)):
            put(p, f"dept {name}", 0.3, add="scale" in name)
        elif name == "context":
            put(p, name, 0.2, add=True)
        else:
            put(p, name, 0.3 if name.startswith("meta") else 0.5 if name.startswith("deep") else 0.1)
    same(whole(pictures()), golden["logits"])
    same(whole.set_classes([*NAMES, "zebra"])(pictures())[:, :-1], golden["new"])
    whole.set_classes(NAMES)
    same(backward(whole), golden["loss"])
    for name, p in parameters.items():
        same(sketch(p.grad), golden["gradients"][name], 2e-5)  # type: ignore[arg-type]
    torch.optim.SGD([g | {"weight_decay": 0} for g in learner.parameter_groups(3.5e-3, 0.0)], momentum=0.9).step()
    same(whole.loss(pictures(), LABELS), golden["stepped"])


def test_mmrl_plus():
    golden = GOLDEN["mmrlpp"]
    chosen = make_method("mmrl", tokens=2, width=8, first=2, last=3, rank=2, project_rank=4, mix=0.6)
    whole = built(resolved(chosen, None, "coop/oxford_pets")[0])
    learner: Any = whole.learner
    parameters = {name: getattr(learner, name) for name in ("rows", "up", "down")}
    for tower in ("text", "image"):
        parameters |= {f"{tower} {name}": p for name, p in getattr(learner, f"to_{tower}").named_parameters()}
    assert set(parameters) == set(golden["gradients"])
    for name, p in parameters.items():
        put(p, f"mmrl {name}", 0.5)
    check(whole, golden, parameters)


def test_mmrl():
    golden = GOLDEN["mmrl"]
    chosen = make_method("mmrl", tokens=2, width=8, first=2, last=3)
    whole = built(resolved(chosen, None, "coop/oxford_pets")[0])
    learner: Any = whole.learner
    assert whole.method.weight == 0.2
    parameters = {"rows": learner.rows, "project": learner.project}
    for tower in ("text", "image"):
        for i, linear in enumerate(getattr(learner, f"to_{tower}")):
            parameters |= {f"{tower} {i} {name}": p for name, p in linear.named_parameters()}
    assert set(parameters) == set(golden["gradients"])
    learner.project.data.copy_(whole.model.visual.proj)
    for name, p in parameters.items():
        put(p, f"mmrl {name}", 0.1 if name == "project" else 0.5, add=name == "project")
    check(whole, golden, parameters)


def check(whole: OpenVocabulary, golden: dict[str, Any], parameters: dict[str, Tensor]) -> None:
    same(whole(pictures()), golden["logits"])
    same(whole.set_classes([*NAMES, "zebra"])(pictures())[:, :-1], golden["new"])
    whole.set_classes(NAMES)
    same(backward(whole), golden["loss"])
    for name, p in parameters.items():
        same(sketch(p.grad), golden["gradients"][name], 2e-5)
    torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0).step()
    same(whole.loss(pictures(), LABELS), golden["stepped"])


@pytest.mark.parametrize("depth", [1, 3])
def test_co_prompt(depth: int, monkeypatch: pytest.MonkeyPatch):
    golden = GOLDEN[f"co_prompt {depth} 2"]
    texts = ("a photo of a {}.", "a bad photo of a {}.", "a photo of many {}.")
    whole = built("co_prompt", depth=depth, template=texts)
    learner: Any = whole.learner
    same(sketch(learner.context), golden["start"])
    put(learner.context, "context", 0.2, add=True)
    parameters = {"context": learner.context} | {f"deep {i}": p for i, p in enumerate(learner.deep)}
    for kind, adapter in (("image", learner.of_pictures), ("text", learner.of_texts)):
        parameters |= {f"{kind} down": adapter.down.weight, f"{kind} up": adapter.up.weight}
    for i, layer in enumerate(learner.project):
        parameters |= {f"project {i}": layer.weight, f"bias {i}": layer.bias}
    for name, parameter in parameters.items():
        if name != "context":
            put(parameter, name, 0.1 if name.startswith(("project", "bias")) else 0.5)
    same(whole(pictures()), golden["logits"])
    drawn = []
    monkeypatch.setattr(torch, "randint", lambda high, size: drawn.append(high) or torch.tensor(1))
    loss = whole.loss(torch.stack((pictures(), noise("images 2", 4, 3, 32, 32)), dim=1), LABELS)
    same(loss, golden["loss"])
    loss.backward()
    assert drawn == [3] and set(golden["gradients"]) == set(parameters)
    for name, parameter in parameters.items():
        same(sketch(parameter.grad), golden["gradients"][name], 2e-5)  # type: ignore[arg-type]
