"""The supernet: the model with every method at full width in every block; a subnet uses the first rows and columns."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from peft_data.augment import normalise
from peft_data.batches import Batch, generator_of
from torch import Tensor, nn
from torch.func import functional_call

from peft_core.attach import is_inserted
from peft_core.grafts.graft import Graft
from peft_core.stock import adapter_state
from vision_peft.classify import Classifier
from vision_peft.noah.forms import Forms
from vision_peft.noah.space import Space, Subnet


class Supernet:
    """Runs a model, adapted with every method of the space at its largest width in all blocks, as one of its subnets.

    A width d of a super-weight is its first d rows or columns: views, so gradients reach the chosen part alone, and nothing
    is built. Numbers that depend on the width (a scale, a count of tokens) are those of the core's own form of that width.

    Args:
        model: `adapt(stock, space.method(space.widest(blocks)))`.
        forms: of that model, adapted or not.
    """

    def __init__(self, model: nn.Module, forms: Forms) -> None:
        self.model, self.forms = model, forms
        self.modules: dict[str, Any] = {path: m for path, m in model.named_modules() if is_inserted(path)}
        self.grafts = [module for module in self.modules.values() if isinstance(module, Graft)]
        self.tensors = {k: t for k, t in (*model.named_parameters(), *model.named_buffers()) if is_inserted(k)}
        self.slices: dict[str, tuple[slice, ...]] = {}
        self.choose(forms.space.widest(forms.blocks))

    def choose(self, subnet: Subnet) -> None:
        """From now on the model is this subnet."""
        for graft in self.grafts:
            graft.enabled = False
        self.slices = {}
        for form in self.forms.of(subnet):
            for path in form.grafts:
                self.modules[path].enabled = True
            for path, numbers in form.plain.items():
                vars(self.modules[path]).update(numbers)
            for key, shape in form.shapes.items():
                if shape != tuple(self.tensors[key].shape):
                    self.slices[key] = tuple(slice(size) for size in shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `B C` of normalised pictures `B 3 H W`."""
        chosen = {key: self.tensors[key][index] for key, index in self.slices.items()}
        return functional_call(self.model, chosen, (images,), tie_weights=False)

    def state(self, subnet: Subnet) -> dict[str, Tensor]:
        """The tensors of the subnet's own adapter: inherited weights, and the head."""
        shapes = {key: shape for form in self.forms.of(subnet) for key, shape in form.shapes.items()}
        state = adapter_state(self.model)
        head = {key: value for key, value in state.items() if not is_inserted(key)}
        sliced = {key: state[key][tuple(slice(size) for size in shape)] for key, shape in shapes.items()}
        return {key: value.detach().clone() for key, value in (sliced | head).items()}


class SupernetClassifier(Classifier):
    """Each step trains one subnet, drawn uniformly from the space as a function of (seed, step); scoring takes the widest."""

    def __init__(self, model: nn.Module, *args: Any, space: Space, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        # not as a submodule: it holds the model a second time
        self.__dict__["supernet"] = Supernet(model, Forms(model, space))

    @property
    def net(self) -> Supernet:
        return self.__dict__["supernet"]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(normalise(images, self.mean, self.std))

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        super().on_train_batch_start(batch, index)
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + index
        self.net.choose(self.subnet(step))

    def subnet(self, step: int) -> Subnet:
        forms = self.net.forms
        # the same on every process, and apart from what the step itself draws
        seed = int(torch.randint(1 << 62, (), generator=generator_of(self.seed, step, 0x0A)))
        return forms.space.draw(Random(seed), forms.blocks)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.net.choose(self.net.forms.space.widest(self.net.forms.blocks))
