"""What every method promises on every family it works on: `peft_core.testing`, for all methods by their own examples."""

import functools
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from peft_core import PeftError, adapt, list_methods
from peft_core.attach import is_inserted, modules_of
from peft_core.method import Method
from peft_core.registry import find_method, make_method
from peft_core.testing import BrokenContract, check, contract, lacks, loss, perturb
from tests.tiny import FURTHER, MODELS, Tiny, pictures, vit

REFUSED = {
    ("ia3", "eva_fused"): "bias lies outside",
    ("adapter", "mmdit"): "between two modules",
    ("compacter", "mmdit"): "between two modules",
    ("conv_pass", "mmdit"): "between two modules",
    ("controlnet", "mmdit"): "join norm and other channels than 3 are for UNets",
    ("aim", "norms_behind"): "norms behind",
    ("hiwi", "rms_norm"): "it has no bias",
}
"""Odd pairs that a sentence refuses, beside those that a method's `needs` and `suits` tell."""


@functools.cache
def usual(cls: type[Method]) -> Method:
    return cls()


def title(method: Method) -> str:
    """A method's name with what differs from its defaults."""
    told = [method.name]
    for key, value in vars(method).items():
        if value != getattr(usual(type(method)), key, None):
            told.append(f"{key}_{'_'.join(map(str, value)) if isinstance(value, tuple | dict) else value}")
    return "-".join(told)[:90]


def examples() -> list[Method]:
    return [example for name in list_methods() for example in find_method(name).examples()]


def everywhere() -> list[tuple[str, Method]]:
    """Weight changes on all that a family has besides attention and MLP."""
    ranked: dict[str, Any] = {"rank": 2, "alpha": 3.0}
    kinds = [("lora", ranked), ("dora", ranked), ("loha", ranked | {"tucker": True}), ("vera", {"rank": 4}),
             ("lokr", ranked | {"tucker": True, "decompose_both": True}), ("oft", {"block_size": 4})]  # fmt: skip
    found = [
        (name, make_method(kind, **s, targets=MODELS[name].linears)) for name in ("unet", "mmdit") for kind, s in kinds
    ]
    return found + [("vit", make_method(kind, **s, targets=("patch_embed", "qkv"))) for kind, s in kinds]


ONLY = {"lora_file": ("unet",), "omini_control": ("flux",)}
"""Of what is made for the modules of one model."""
ALIKE = (
    "deit",
    "dinov2_registers",
    "grouped_keys",
    "eva_fused",
    "videomae",
    "clip_text_model",
    "average_pooled",
    "attention_pooled",
    "rms_norm",
    "batch_norm",
    "eva",
    "clip_image",
    "custom_text_clip",
)
"""Families near another one: a method's first example is tried on a third of them each time, on the others in the slow tests.
Of its further examples a third of the pairs with the other families, and of those alone, is tried each time."""


def pairs() -> Iterator[Any]:
    first: set[str] = set()
    for method in examples():
        for name in ONLY.get(method.name, tuple(MODELS)):
            near, kin = name in ALIKE, method.name in first
            turn = zlib.crc32(f"{title(method)} {name}".encode()) % 3 == 0
            rare = (near and kin) or ((near or kin) and not turn)
            yield pytest.param(name, method, marks=pytest.mark.slow if rare else ())
        first.add(method.name)
    yield from everywhere()


@pytest.mark.parametrize(
    ("name", "method"), [*pairs()], ids=lambda value: value if isinstance(value, str) else title(value)
)
def test_contract(name: str, method: Method):
    family = (MODELS | FURTHER)[name]
    lacking, odd = lacks(method, family.anatomy), REFUSED.get((method.name, name))
    way = ("copied", "pickled")[zlib.crc32(f"{name} {title(method)}".encode()) % 2]  # each method in both ways
    refusal = check(family, method, [way])
    if lacking:
        assert refusal is not None, f"{method.name} says that it needs {lacking}, and works without"
    elif refusal is not None:
        assert odd is not None and odd in refusal, refusal


def test_a_familys_models_are_its_stock_with_tensors_of_their_own():
    family = MODELS["unet"]
    model, other = family.model(), family.model()
    stock = family.stock.state_dict()
    assert all(torch.equal(value, stock[key]) for key, value in model.state_dict().items())
    taken = {value.data_ptr() for value in (*stock.values(), *other.state_dict().values())}
    assert taken.isdisjoint(value.data_ptr() for value in model.state_dict().values())
    assert [type(p) for p in model.parameters()] == [torch.nn.Parameter] * len(list(family.stock.parameters()))
    assert modules_of(model) == list(model.modules())


def test_every_method_works_somewhere():
    assert {method.name for method in examples()} == set(list_methods())
    for method in examples():
        assert any(
            lacks(method, family.anatomy, quantised) is None
            for family in (MODELS | FURTHER).values()
            for quantised in (False, True)
        ), title(method)


class Forgets(find_method("adaptformer")):  # type: ignore[misc]
    """A method that says it changes nothing at the start, and does."""

    def install(self, plan) -> None:
        super().install(plan)
        for _, _, graft in plan.grafts:
            torch.nn.init.ones_(graft.change.up.bias)


class OfAnAuthor(find_method("adaptformer")):  # type: ignore[misc]
    """A method that no entry point names yet."""


def test_an_author_outside_tries_the_contract():
    assert contract(OfAnAuthor) == {"vit": "holds", "clip": "holds"}
    assert "of_an_author" not in list_methods()


def test_a_broken_promise_is_told():
    with pytest.raises(BrokenContract, match="identity at step 0 in train mode: not so for Forgets"):
        contract(Forgets(bottleneck=4, dropout=0.0))
    with pytest.raises(BrokenContract, match="works on none of vit, clip: .* works on a diffusers UNet"):
        contract(make_method("controlnet"))
    assert contract("lora") == {"vit": "holds", "clip": "holds"}
    assert "no grid" in contract(make_method("conv_pass", bottleneck=4))["clip"]


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "targets": ("q", "v", "proj", "fc1")}, "dora": {"rank": 2}, "ssf": {}, "oft": {"block_size": 4},
    "ia3": {},
    "vera": {"rank": 4}, "bitfit": {}, "adaptformer": {"bottleneck": 8, "dropout": 0.0}, "adapter_plus": {"bottleneck": 4},
    "vpt": {"tokens": 2}, "prefix": {"tokens": 2, "reparameterize": True, "hidden": 5},
    "lst": {"reduction": 4, "skip": None},
    "conv_pass": {"bottleneck": 4}, "noah": {"widths": {"vpt": 2, "lora": 2, "adapter": 2}}, "full": {},
}  # fmt: skip
"""One or two representatives a kind of graft: what takes seconds is tried on these."""


@pytest.mark.parametrize("name", ["vit", "clip", "unet", "clip_text_model", "mmdit"])
@pytest.mark.parametrize("method", KINDS)
def test_bfloat16_base_keeps_float32_adapters(name: str, method: str):
    tiny, chosen = MODELS[name], make_method(method, **KINDS[method])
    if lacks(chosen, tiny.anatomy) or (method, name) in REFUSED:
        return
    model = adapt(tiny.model().bfloat16(), chosen).train()
    assert all(p.dtype == torch.float32 for k, p in model.named_parameters() if is_inserted(k))
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tiny.batch().items()}
    tiny.prepare(model)
    y = tiny.out(model(**batch))
    assert y.dtype == torch.bfloat16
    loss(y.float()).backward()


SHALLOW = Tiny(vit(depth=2), pictures())
# a weight, tokens, weights within `nn.MultiheadAttention`
COMPILED = [("vit", "lora"), ("vit", "vpt"), ("clip_image", "lora")]
ALSO = [("vit", name) for name in KINDS] + [
    (family, m) for family in ("clip_image", "eva") for m in ("lora", "vpt", "prefix")
]


@pytest.mark.parametrize(
    ("name", "method"),
    COMPILED + [pytest.param(*pair, marks=pytest.mark.slow) for pair in ALSO if pair not in COMPILED],
)
def test_compiles_to_one_graph(name: str, method: str):
    tiny, chosen = SHALLOW if name == "vit" else MODELS[name], make_method(method, **KINDS[method])
    model = adapt(tiny.model(), chosen).eval()
    perturb(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = tiny(compiled)
    torch.testing.assert_close(y, tiny(model), rtol=1e-4, atol=1e-5)
    _same_gradients(compiled, model, tiny)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="inductor needs a C++ compiler")
def test_inductor_trains_lora():
    model = adapt(SHALLOW.model(), "lora", rank=2).train()
    perturb(model)
    torch._dynamo.reset()
    _same_gradients(torch.compile(model, fullgraph=True), model, SHALLOW)


def _same_gradients(compiled: Any, model: torch.nn.Module, tiny: Tiny) -> None:
    grads = []
    for run in (compiled, model):
        model.zero_grad(set_to_none=True)
        loss(tiny(run)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_refusal_is_a_sentence():
    with pytest.raises(PeftError, match=r"\.$"):
        adapt(MODELS["unet"].model(), "vpt")
