"""How a weight change acts: a module's class becomes a subclass of it whose parameters read as changed.

Linears, convolutions, embeddings and `nn.MultiheadAttention` run by a change's own kernel where it has one.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta, grafts


def changed_weight(weight: Tensor, deltas: Sequence[Delta]) -> Tensor:
    for delta in deltas:
        if delta.rows is None:
            new = delta(weight)
            weight = new if delta.factor == 1.0 else torch.lerp(weight, new, delta.factor)
        else:
            start, stop = delta.rows
            new = delta(weight[start:stop])
            new = new if delta.factor == 1.0 else torch.lerp(weight[start:stop], new, delta.factor)
            weight = torch.cat((weight[:start], new, weight[stop:]))
    return weight


def changed_bias(bias: Tensor | None, deltas: Sequence[Delta], dtype: torch.dtype) -> Tensor | None:
    """b' in the weight's dtype; a change may shift where the stock layer has no bias."""
    for delta in deltas:
        if delta.rows is None or bias is None:
            part, new = bias, delta.bias(bias)
        else:
            part, new = bias[delta.rows[0] : delta.rows[1]], delta.bias(bias[delta.rows[0] : delta.rows[1]])
        if new is part:
            continue
        assert new is not None
        if delta.factor != 1.0:
            new = torch.lerp(torch.zeros_like(new) if part is None else part, new, delta.factor)
        bias = new if delta.rows is None or bias is None else torch.cat(
            (bias[: delta.rows[0]], new, bias[delta.rows[1] :])
        )  # fmt: skip
    return None if bias is None else bias.to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list[Delta]) -> Tensor:
    """A linear under weight changes: their kernel where they share one, else F.linear with W' and b'."""
    if not deltas:
        return F.linear(x, weight, bias)
    if any(delta.reads_input for delta in deltas):
        still = [delta for delta in deltas if not delta.reads_input]
        y = linear(x, weight, bias, still)
        for delta in deltas:
            if delta.reads_input:
                y = add_rows(y, delta.on_input(x, F.linear), delta.rows)
        return y
    kind = type(deltas[0])
    if kind.kernel is not None and all(type(delta) is kind for delta in deltas):
        return kind.kernel(x, weight, bias, deltas)
    return F.linear(x, changed_weight(weight, deltas), changed_bias(bias, deltas, weight.dtype))


def add_rows(y: Tensor, change: Tensor, rows: tuple[int, int] | None) -> Tensor:
    if rows is None:
        return y + change.to(y.dtype)
    return y + F.pad(change, (rows[0], y.shape[-1] - rows[1])).to(y.dtype)


class _Adapted:
    """Mixed in before the stock class: parameters read as changed, pickles name the stock class."""

    stock_class: ClassVar[type]
    names: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _blank, (self.stock_class, self.names), self.__getstate__()


class _Linear(_Adapted):
    def forward(self, input: Tensor) -> Tensor:
        parameters = self._parameters  # type: ignore[attr-defined]
        return linear(input, parameters["weight"], parameters["bias"], list(grafts(self, Delta)))  # type: ignore[arg-type]


class _Conv2d(_Adapted):
    def forward(self, input: Tensor) -> Tensor:
        return conv2d(self, input, list(grafts(self, Delta)))  # type: ignore[arg-type]


class _Embedding(_Adapted):
    def forward(self, input: Tensor) -> Tensor:
        table = self._parameters["weight"]  # type: ignore[attr-defined]
        # ids behind the table are those of tokens that a change adds: a changed table is never formed
        rows = F.embedding(input.clamp(max=len(table) - 1), table)
        for delta in grafts(self, Delta):  # type: ignore[arg-type]
            rows = delta.look_up(input, rows)
        return rows


def conv2d(module: Any, x: Tensor, deltas: list[Delta]) -> Tensor:
    """A convolution under weight changes: by its only change's kernel, or as two convolutions, without the dense dW, where
    changes only add."""
    if len(deltas) == 1 and deltas[0].conv_kernel is not None and not deltas[0].reads_input:
        y = deltas[0].conv_kernel(module, x, deltas[0])
        if y is not None:
            return y
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    if module.groups > 1 and any(delta.reads_input for delta in deltas):
        raise PeftError("a grouped convolution takes no change with dropout of its own: set dropout to 0.")
    # of a grouped one s·B A x is not W' x: A would mix the channels of one group alone
    all_add = module.groups == 1 and all(delta.additive for delta in deltas)
    adding = [delta for delta in deltas if all_add or delta.reads_input]
    still = [delta for delta in deltas if delta not in adding]
    y = module._conv_forward(x, changed_weight(weight, still), changed_bias(bias, still, weight.dtype))
    for delta in adding:
        y = y + delta.on_input(x, lambda x, a: module._conv_forward(x, a.view(-1, *weight.shape[1:]), None)).to(y.dtype)
    return y


def _effective(name: str) -> property:
    def read(self: nn.Module) -> Tensor | None:
        stock = self._parameters[name]
        deltas = list(grafts(self, Delta))
        if not deltas:
            return stock
        if name.endswith("weight"):
            return changed_weight(stock, deltas)  # type: ignore[arg-type]
        return changed_bias(stock, deltas, self._parameters[name.replace("bias", "weight")].dtype)  # type: ignore[union-attr]

    return property(read)


_NAMES = ("weight", "bias", "in_proj_weight", "in_proj_bias")
_classes: dict[tuple[type, tuple[str, ...]], type] = {}


def adapted_class(stock: type, names: tuple[str, ...]) -> type:
    """The subclass of `stock` whose parameters `names` read as changed; made once."""
    if (stock, names) not in _classes:
        from peft_core.grafts.attention import AdaptedAttention

        if issubclass(stock, nn.MultiheadAttention):
            mixin: type = AdaptedAttention
        elif getattr(stock, "forward", None) is nn.Linear.forward:
            mixin = _Linear
        elif getattr(stock, "forward", None) is nn.Conv2d.forward:
            mixin = _Conv2d
        elif getattr(stock, "forward", None) is nn.Embedding.forward:
            mixin = _Embedding
        else:
            mixin = _Adapted
        body: dict[str, Any] = {name: _effective(name) for name in names}
        body |= {"stock_class": stock, "names": names, "__module__": __name__, "__doc__": stock.__doc__}
        _classes[stock, names] = type(f"Adapted{stock.__name__}", (mixin, stock), body)
    return _classes[stock, names]


def _blank(stock: type, names: tuple[str, ...]) -> Any:
    cls: Any = adapted_class(stock, names)
    return cls.__new__(cls)


def swap_class(module: nn.Module) -> None:
    if not isinstance(module, _Adapted):
        module.__class__ = adapted_class(type(module), tuple(n for n in _NAMES if n in module._parameters))


def restore_class(module: nn.Module) -> None:
    if isinstance(module, _Adapted):
        module.__class__ = module.stock_class  # type: ignore[assignment]
