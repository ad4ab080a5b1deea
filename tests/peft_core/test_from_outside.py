"""An adapted model is looked at and run from outside: sharded, replicated, exported, in threads, under transforms."""

import copy
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from peft_core import (
    PeftError,
    adapt,
    adaptation,
    count_parameters,
    disabled,
    load_adapter,
    merge,
    merging,
    remove,
    save_adapter,
)
from peft_core.attach import is_inserted
from peft_core.grafts.calls import state

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"targets": ("q", "v", "proj", "fc1")}, "dora": {"targets": ("proj", "fc2")}, "loha": {}, "oft": {"block_size": 4},
    "ia3": {}, "ssf": {}, "adaptformer": {"bottleneck": 4, "dropout": 0.0}, "adapter": {"bottleneck": 4},
    "vpt": {"tokens": 3}, "bitfit": {},
}  # fmt: skip


def stock(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(img_size=16, patch_size=8, embed_dim=24, num_heads=2, depth=2, num_classes=5)
    return timm.create_model("vit_tiny_patch16_224", **sizes | settings).eval()


def adapted(method: str, **settings: Any) -> nn.Module:
    model = adapt(stock(**settings), method, **METHODS.get(method, {}))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def pictures(count: int = 2) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(count, 3, 16, 16)


@pytest.fixture(scope="module")
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_sharding_after_adapt_changes_neither_outputs_nor_gradients(method: str, one_process: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    whole, sharded = adapted(method), adapted(method)
    for block in sharded.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=one_process)
    fully_shard(sharded, mesh=one_process)
    outputs = [model(pictures()) for model in (whole, sharded)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for y in outputs:
        y.square().sum().backward()
    expected = {k: p.grad for k, p in whole.named_parameters()}
    for key, parameter in sharded.named_parameters():
        found: Any = None if parameter.grad is None else parameter.grad.full_tensor()  # type: ignore[attr-defined]
        assert (found is None) == (expected[key] is None), key
        if found is not None:
            torch.testing.assert_close(found, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "ssf", "dora", "oft"])
def test_who_reads_a_weight_and_writes_it_back_gets_the_stock_one(method: str) -> None:
    model, plain = adapted(method), stock()
    y = model(pictures())
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.LayerNorm) and not is_inserted(path):
            torch.testing.assert_close(module.weight, plain.get_submodule(path).weight) if "head" not in path else None
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    torch.testing.assert_close(model(pictures()), y, rtol=0, atol=0)
    nn.utils.parametrize.register_parametrization(model.blocks[0].attn.proj, "weight", nn.Identity())  # type: ignore
    torch.testing.assert_close(model(pictures()), y, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["adaptformer", "lora", "ssf", "vpt"])
def test_threads_do_not_see_each_other(method: str) -> None:
    model, inputs, wrong = adapted(method), [pictures(1) + i for i in range(3)], []
    with torch.no_grad():
        expected = [model(x) for x in inputs]

    def work(i: int) -> None:
        with torch.inference_mode():
            for _ in range(25):
                if not torch.allclose(model(inputs[i]), expected[i], atol=1e-5):
                    wrong.append(i)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("method", ["adaptformer", "vpt"])
def test_a_forward_that_raised_leaves_nothing_behind(method: str) -> None:
    model = adapted(method)
    y = model(pictures())

    def stop(*_: Any) -> None:
        raise end

    handle = model.blocks[1].mlp.fc1.register_forward_hook(stop)  # type: ignore[union-attr]
    before = dict(state())
    for end in (RuntimeError("out of memory"), KeyboardInterrupt()):
        with pytest.raises(type(end)):
            model(pictures())
        if isinstance(end, RuntimeError):
            assert state().keys() == before.keys()
    handle.remove()
    torch.testing.assert_close(copy.deepcopy(model)(pictures()), y)


@pytest.mark.parametrize("method", METHODS)
def test_replicas_of_data_parallel_give_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the copy to a device is a clone here: what nn.DataParallel does besides runs as it is
    module: Any = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda ts, devices, detach=False: [[t.clone() for t in ts] for _ in devices],
    )
    model = adapted(method)
    with torch.no_grad():
        replica = module.replicate(model, [0, 1], detach=True)[1]
        torch.testing.assert_close(replica(pictures()), model(pictures()))


@pytest.mark.parametrize("deep", [False, True])
def test_features_between_blocks_hold_image_tokens_only(deep: bool) -> None:
    model: Any = adapt(stock(depth=3), "vpt", tokens=4, deep=deep)
    y = model(pictures())
    first, last = model.forward_intermediates(pictures(), indices=[0, 2], intermediates_only=True)
    assert first.shape == last.shape == (2, 24, 2, 2)
    assert [t.shape[1] for t in model.get_intermediate_layers(pictures(), n=[1, 2])] == [4, 4]
    torch.testing.assert_close(model(pictures()), y)


def test_carried_prompts_are_those_of_one_long_sequence() -> None:
    model: Any = adapted("vpt")
    tokens = next(graft for graft in model.blocks[0].peft.vpt.values()).tokens
    with torch.no_grad(), disabled(model):
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pictures()))))
        x = torch.cat((x[:, :1], tokens.expand(2, -1, -1), x[:, 1:]), 1)
        for block in model.blocks:
            x = block(x)
        expected = model.forward_head(model.norm(torch.cat((x[:, :1], x[:, 4:]), 1)))
    torch.testing.assert_close(model(pictures()), expected)


@pytest.mark.parametrize("method", [*METHODS, "lst", "prefix"])
def test_blocks_that_run_again_for_their_backward_give_the_same_gradients(method: str) -> None:
    grads = []
    for checkpointed in (False, True):
        model: Any = adapted(method).train()
        model.set_grad_checkpointing(checkpointed)
        model(pictures()).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", ["bitfit", "layer_norm", "lora", "ssf"])
def test_a_sharded_model_is_weighed_saved_and_given_back(method: str, one_process: Any, tmp_path: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    def sharded() -> Any:
        model = adapted(method)
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=one_process)
        return fully_shard(model, mesh=one_process)

    plain, model, x = stock(), sharded(), pictures()
    plain.head.load_state_dict(adapted(method).head.state_dict())  # type: ignore[union-attr,operator]
    y = model(x).detach()
    with torch.no_grad(), disabled(model):
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(load_adapter(stock(), save_adapter(model, tmp_path / "a"))(x), y)
    torch.testing.assert_close(remove(model)(x), plain(x))


@pytest.mark.parametrize("method", ["lora", "oft", "vera", "ssf", "dora", "lokr"])
@pytest.mark.parametrize("ran", [False, True], ids=["at once", "after a forward"])
def test_a_sharded_model_is_merged(method: str, ran: bool, one_process: Any) -> None:
    """All of it, as one that is whole; where a weight cannot be written nothing is."""
    from torch.distributed.fsdp import fully_shard

    expected, model, x = adapted(method), adapted(method), pictures()
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=one_process)
    fully_shard(model, mesh=one_process)
    y = expected(x).detach()
    if ran:
        torch.testing.assert_close(model(x), y)
    merge(expected)
    before = {key: value.full_tensor().clone() for key, value in model.state_dict().items()}  # type: ignore[attr-defined]
    write, calls = merging.write, []

    def failing(*arguments: Any) -> None:
        write(*arguments)
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("no room")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no room"):
        patch.setattr(adaptation, "write", failing)
        merge(model)
    after = model.state_dict()
    assert all(torch.equal(after[key].full_tensor(), value) for key, value in before.items())
    assert merge(model).state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key].full_tensor(), value, rtol=0, atol=0)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


def test_wrapped_models_are_saved_and_counted_as_what_is_inside(tmp_path: Path) -> None:
    model = adapted("lora")
    compiled: Any = torch.compile(model, backend="eager")
    assert count_parameters(compiled) == count_parameters(model)
    save_adapter(compiled, tmp_path / "a")
    with pytest.raises(PeftError, match="adapt the module inside"):
        adapt(compiled, "ssf")


class Packed(nn.Linear):
    """A linear that keeps its weight in 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.bias = linear.bias
        self.step = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.step).round().to(torch.int8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * self.step, self.bias)


def test_changes_that_add_run_beside_a_quantised_weight_and_others_say_why_not() -> None:
    model: Any = stock()
    for block in model.blocks:
        block.mlp.fc1 = Packed(block.mlp.fc1)
    y = model(pictures())
    with pytest.raises(PeftError, match="quantised"):
        adapt(model, "dora", targets="fc1")
    adapt(model, "lora", targets="fc1")
    torch.testing.assert_close(model(pictures()), y, rtol=0, atol=0)
    lora = model.blocks[0].mlp.fc1.peft.lora.fc1
    nn.init.normal_(lora.B)
    x = torch.randn(3, 24)
    change = x @ (lora.B @ lora.A).t() * lora.scale
    with disabled(model):
        base = model.blocks[0].mlp.fc1(x)
    torch.testing.assert_close(model.blocks[0].mlp.fc1(x), base + change)
    with pytest.raises(PeftError, match="quantised"):
        merge(model)
