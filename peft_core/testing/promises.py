"""The promises of a method, one by one, on a model that it has adapted."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.adaptation import disabled, merge, remove, set_scale
from peft_core.adapter_file import load_adapter, save_adapter
from peft_core.attach import grafts_named, is_inserted, record_of
from peft_core.counting import count_parameters
from peft_core.errors import NotMergeable, PeftError
from peft_core.method import Method
from peft_core.stock import head_of, trained_head
from peft_core.testing.families import Family, Written, loss, perturb


class BrokenContract(AssertionError):
    """A promise that a method does not keep, with the model and the settings."""


Promise = Callable[[bool, str], None]


def hold(kept: bool, words: str, family: Family, method: Method) -> None:
    if not kept:
        raise BrokenContract(
            f"{words}: not so for {method} on a {family.anatomy.family} ({type(family.stock).__name__})."
        )


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


def starts(model: nn.Module, family: Family, method: Method, promise: Promise) -> None:
    stock, y = family.outputs["train" if method.moves_statistics else "still"], family(model)
    if not method.identical(family.anatomy):
        promise(not torch.equal(y, stock), "a method that is identical at step 0 says so")
    else:
        promise(torch.equal(y, stock) or (not family.exact and close(y, stock)), "identity at step 0 in train mode")


def trains(model: nn.Module, family: Family, promise: Promise) -> None:
    perturb(model)
    (adaptation,) = record_of(model).adaptations.values()
    parameters = dict(model.named_parameters())
    trains = {key for key, p in parameters.items() if p.requires_grad}
    own = {key for key in parameters if is_inserted(key)} | set(adaptation.trained) | set(trained_head(model))
    promise(trains == own, "what trains is the adapter and the head")
    full = {key for key in trains if parameters[key].numel()}
    dead = full
    for draw in range(3 if trains else 0):  # a gate that chance closes stops a gradient once
        (loss(family(model, draw)) + lifecycle.penalty(model)).backward()
        dead = {key for key in full if (g := parameters[key].grad) is None or not g.abs().sum() > 0}
        if not dead - family.unused:
            break
    # softmax does not see a bias that all keys share
    dead = {key for key in dead - family.unused if not key.endswith(("k_proj.bias", "k_norm.bias"))}
    promise(not dead, f"a gradient reaches every parameter ({', '.join(sorted(dead)[:3])})")


def frozen(model: nn.Module, family: Family) -> tuple[nn.Module, Tensor]:
    """The stock model with this one's head, in eval mode, and its output."""
    head = {key: tensor.detach() for key, tensor in head_of(model).items()}
    known = str({key: tensor.tolist() for key, tensor in head.items()})
    if known not in family.headed:
        stock = family.model().eval()
        stock.load_state_dict(head, strict=False)
        family.headed[known] = stock, family(stock).detach()
    return family.headed[known]


def travels(model: nn.Module, y: Tensor, family: Family, promise: Promise, ways: Sequence[str]) -> nn.Module:
    """Gives a copy of the model, made in the last of those ways."""
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        again = load_adapter(family.model().eval(), folder)
    promise(torch.equal(family(again), y), "a saved and loaded adapter gives the same outputs")
    promise(count_parameters(again) == count_parameters(model), "a loaded adapter has as many parameters")
    again.load_state_dict(family.stock.state_dict())  # strictly
    loaded = again.state_dict()
    same = all(torch.equal(loaded[key], value) for key, value in family.stock.state_dict().items())
    promise(same, "a stock checkpoint loads into an adapted model")
    twin = model
    for way in ways:
        twin = COPIES[way](model)
        promise(torch.equal(family(twin), y), f"a {way} model gives the same outputs")
    return twin


def pickled(model: nn.Module) -> nn.Module:
    stock = {id(p) for key, p in model.named_parameters() if not is_inserted(key)}
    return Written(model, lambda tensor: id(tensor) in stock).read()  # torch pickles a stock tensor, no method does


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {"copied": copy.deepcopy, "pickled": pickled}
"""Ways in which a model is copied."""


def scales(model: nn.Module, y: Tensor, out: Tensor, family: Family, method: Method, promise: Promise) -> None:
    if not method.keeps_originals:
        return
    (adaptation,) = record_of(model).adaptations.values()
    with disabled(model):
        off = family(model)
    promise(close(off, out), "switched off, the model is the frozen one")
    if not all(graft.scalable for _, _, graft in grafts_named(model, adaptation.name)):
        promise(torch.equal(family(model), y), "switched on again, the model is the adapted one")
        try:
            set_scale(model, 0.5)
        except PeftError:
            return
        promise(False, "what is there or not has no scale between")
    set_scale(model, 0.5)
    half, moves = family(model), not torch.equal(off, y)
    promise(not moves or not (close(half, y) or close(half, off)), "half a scale lies between")
    set_scale(model, 1.0)
    promise(torch.equal(family(model), y), "switched on again and scaled back, the model is the adapted one")


def merges(model: nn.Module, y: Tensor, family: Family, promise: Promise) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        merge(model)
    except NotMergeable as reason:
        promise(str(reason).endswith("."), "the reason against merging is a sentence")
        after = model.state_dict()
        promise(all(torch.equal(value, after[key]) for key, value in before.items()), "a refused merge changes nothing")
        promise(torch.equal(family(model), y), "a refused merge changes nothing")
        return
    promise(close(family(model), y), "a merged model gives the same outputs")
    promise(list(model.state_dict()) == list(family.stock.state_dict()), "a merged model has stock keys")
    promise(classes(model) == classes(family.stock), "a merged model has stock classes")


def goes(model: nn.Module, expected: nn.Module, out: Tensor, family: Family, method: Method, promise: Promise) -> None:
    try:
        remove(model)
    except PeftError:
        promise(not method.keeps_originals, "an adaptation that keeps the originals can be removed")
        return
    promise(method.keeps_originals, "what keeps no originals is not removed")
    promise(same(model, expected), "removed, the model is the one that came in")
    promise(torch.equal(family(model), out), "removed, the model is the one that came in")
    promise(classes(model) == classes(expected) and not adapted(model), "removed, the model's classes are stock")
    for one, other in zip(model.modules(), expected.modules(), strict=True):
        promise(one.__dict__.keys() <= other.__dict__.keys(), "removed, nothing is left on a module")
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in (one, other)]
        promise(hooks[0] == hooks[1], "removed, no hook is left")
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    promise(all(a.requires_grad == b.requires_grad for a, b in pairs), "removed, what trained trains again")


def same(model: nn.Module, stock: nn.Module) -> bool:
    one, other = model.state_dict(), stock.state_dict()
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def adapted(model: nn.Module) -> bool:
    return "_peft_record" in model.__dict__


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]
