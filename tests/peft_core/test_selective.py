"""What the selective methods choose and when: against plain formulas, in loops that stop and go on."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn

from peft_core import PeftError, adapt, count_parameters, disabled, lifecycle, load_adapter, merge, save_adapter
from peft_core.jobs.runs.training import quiet
from peft_core.lifecycle import Losses, Progress
from peft_core.method import Method
from peft_core.parts.selection.importance import sites_of
from peft_core.registry import make_method
from tests.peft_core.test_lifecycle import Fits, pictures
from tests.tiny import MODELS, vit


def batches() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 3, 32, 32, generator=g), torch.randint(5, (3,), generator=g)) for _ in range(2)]


def losses(model: nn.Module) -> Losses:
    return Losses(lambda batch: F.cross_entropy(model(batch[0]), batch[1]), batches())


def prepared(method: str, **settings: Any) -> tuple[nn.Module, Method, nn.Module]:
    """An adapted model after `prepare`, its method and the stock model with gradients of all its parameters."""
    torch.manual_seed(0)
    model, made = vit()(), make_method(method, **settings)
    stock = copy.deepcopy(model).requires_grad_(True)
    lifecycle.prepare(adapt(model, made), losses(model))
    assert all(p.grad is None for p in model.parameters())
    return model, made, stock


def chosen(model: nn.Module, method: Method) -> list[tuple[list[int], list[int]]]:
    return [
        (s.graft.indices.tolist(), [] if s.graft.bias_indices is None else s.graft.bias_indices.tolist())
        for s in sites_of(model, method)
    ]


def top(scores: list[Tensor], count: int) -> list[set[int]]:
    least = torch.cat([score.flatten() for score in scores]).sort().values[-count]
    return [set((score.flatten() >= least).nonzero().flatten().tolist()) for score in scores]


def linears(model: nn.Module) -> list[nn.Linear]:
    """In the order of the modules."""
    return [m for k, m in model.named_modules() if isinstance(m, nn.Linear) and k.startswith("blocks")]


def test_fish_mask_sums_the_squares_of_single_samples():
    model, method, stock = prepared("fish_mask", entries=300, targets=("qkv", "proj", "fc1", "fc2"), samples=4)
    layers = linears(stock)
    scores = [torch.zeros_like(p) for layer in layers for p in (layer.weight, layer.bias)]
    for x, y in [(x[n : n + 1], y[n : n + 1]) for x, y in batches() for n in range(3)][:4]:
        stock.zero_grad()
        F.cross_entropy(stock(x), y).backward()
        for score, p in zip(scores, [p for layer in layers for p in (layer.weight, layer.bias)], strict=True):
            score += p.grad.square()
    expected = top(scores, 300)
    found = [set(part) for parts in chosen(model, method) for part in parts]
    assert found == expected and sum(map(len, found)) == 300
    assert count_parameters(model).inserted == 300


def test_gps_takes_each_rows_largest_summed_gradient():
    model, method, stock = prepared("gps", per_row=2, targets=("qkv", "proj", "fc1", "fc2"))
    for x, y in batches():
        F.cross_entropy(stock(x), y).backward()
    for (indices, of_bias), layer in zip(chosen(model, method), linears(stock), strict=True):
        rows = layer.weight.grad.abs().topk(2, 1).indices + torch.arange(len(layer.weight))[:, None] * layer.in_features
        assert set(indices) == set(rows.flatten().tolist()) and of_bias == list(range(layer.out_features))


def test_gps_asks_for_contrastive_losses_by_name():
    def contrastive(batch: Any) -> Tensor:
        asked.append(len(batch[0]))
        return model(batch[0]).square().sum()

    asked: list[int] = []
    model = adapt(vit(depth=1)(), "gps")
    lifecycle.prepare(model, Losses(lambda batch: pytest.fail("asked"), batches(), {"contrastive": contrastive}))
    assert asked == [3, 3]


def test_second_order_and_child_tuning():
    model, method, stock = prepared("second_order", share=0.01, targets=("fc1",), biases=False)
    for x, y in batches():
        F.cross_entropy(stock(x), y).backward()
    for (indices, _), block in zip(chosen(model, method), stock.blocks, strict=True):
        gradient = block.mlp.fc1.weight.grad
        assert [set(indices)] == top([gradient.abs()], round(gradient.numel() * 0.01))

    model, method, stock = prepared("child_tuning", share=0.3, clip=0.01, targets=("fc1",), biases=False)
    scores = [torch.zeros_like(block.mlp.fc1.weight) for block in stock.blocks]
    for x, y in batches():
        stock.zero_grad()
        F.cross_entropy(stock(x), y).backward()
        for score, block in zip(scores, stock.blocks, strict=True):
            nn.utils.clip_grad_norm_(block.mlp.fc1.weight, 0.01)
            score += block.mlp.fc1.weight.grad.square()
    count = int(sum(score.numel() for score in scores) * 0.3 + 0.5)
    assert [set(indices) for indices, _ in chosen(model, method)] == top(scores, count)


def test_lt_sft_trains_all_and_puts_it_back():
    model, method, stock = prepared("lt_sft", entries=200, passes=2, first_lr=1e-2, targets=("mlp",), biases=False)
    before = {key: value.clone() for key, value in stock.state_dict().items()}
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    weights = [layer.weight for block in stock.blocks for layer in (block.mlp.fc1, block.mlp.fc2)]
    starts = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW([*weights, *stock.head.parameters()], lr=1e-2, weight_decay=0.0)
    for x, y in batches() * 2:
        optimizer.zero_grad()
        F.cross_entropy(stock(x), y).backward()
        optimizer.step()
    moved = [(weight.detach() - start).abs() for weight, start in zip(weights, starts, strict=True)]
    assert [set(indices) for indices, _ in chosen(model, method)] == top(moved, 200)


def test_xattn_is_for_models_with_cross_attention():
    model = adapt(MODELS["unet"].model(), "xattn", targets=("cross_k", "cross_v"))
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained and all("attn2.to_k" in key or "attn2.to_v" in key for key in trained)
    with pytest.raises(PeftError, match="has none: a text-to-image UNet has"):
        adapt(vit()(), "xattn")
    with pytest.raises(PeftError, match="conv is no part of it"):
        adapt(MODELS["unet"].model(), "xattn", targets=("cross_k", "conv"))


def test_no_loss_and_no_call_are_told():
    model = adapt(vit(depth=1)(), "fish_mask")
    with pytest.raises(PeftError, match="was given none"):
        lifecycle.prepare(model, [])
    with pytest.raises(PeftError, match=r"call peft_core.lifecycle.prepare\(model, losses\)"):
        model(torch.randn(1, 3, 32, 32))
    with disabled(model):
        model(torch.randn(1, 3, 32, 32))


# ---- what goes on while they train -----------------------------------------------------------------------------------


STEPS = 6


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        x, y = batches()[step % 2]
        (F.cross_entropy(model.train()(x), y) + lifecycle.penalty(model)).backward()
        lifecycle.before_step(model)
        optimizer.step()
        lifecycle.after_step(model, Progress(step + 1, STEPS), losses(model), optimizer)
        optimizer.zero_grad()


def begun(method: str, settings: dict[str, Any], prepare: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = adapt(vit(depth=2)(), method, **settings)
    if prepare:
        lifecycle.prepare(model, losses(model))
    return model, torch.optim.AdamW(lifecycle.parameter_groups(model, 1e-2, 0.1))


LIVES: dict[str, dict[str, Any]] = {
    "fish_mask": {"share": 0.02}, "child_tuning": {"kind": "free"}, "u_bitfit": {"rounds": 2}, "s_bitfit": {"rounds": 2},
    "diff_pruning": {"share": 0.02, "targets": ("attn", "mlp")}, "fish_dip": {"share": 0.02, "samples": 2, "every": 3},
    "spt": {"share": 0.03, "rank": 2, "form": "adapter"},
}  # fmt: skip


@pytest.mark.parametrize("method", LIVES)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_goes_on_to_the_same_bytes(method: str, stop: int):
    whole, optimizer = begun(method, LIVES[method])
    train(whole, optimizer, range(STEPS))
    first, optimizer = begun(method, LIVES[method])
    train(first, optimizer, range(stop))
    kept = copy.deepcopy((first.state_dict(), optimizer.state_dict(), lifecycle.state(first)))
    second, _ = begun(method, LIVES[method], prepare=False)
    second.load_state_dict(kept[0])
    optimizer = torch.optim.AdamW(lifecycle.parameter_groups(second, 1e-2, 0.1))
    optimizer.load_state_dict(kept[1])
    lifecycle.load_state(second, kept[2])
    train(second, optimizer, range(stop, STEPS))
    for model in (whole, second):
        lifecycle.finish(model)
    states = whole.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("method", ["u_bitfit", "s_bitfit", "diff_pruning"])
def test_what_is_pruned_goes_back_and_the_file_holds_the_budget(method: str, tmp_path):
    model, optimizer = begun(method, LIVES[method])
    inserted = count_parameters(model).inserted
    train(model, optimizer, range(STEPS))
    x = batches()[0][0]
    y = model.eval()(x).detach()
    lifecycle.finish(model)
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    left = count_parameters(model).inserted
    if method == "u_bitfit":
        assert left == int(inserted * 0.5 + 0.5)
    elif method == "s_bitfit":
        assert 0 < left <= inserted * 0.5
        assert all(len(s.graft.bias_values) in (0, s.graft.shape[0]) for s in sites_of(model, method_of(model)))  # type: ignore[arg-type]
    else:
        assert left == make_method(method, **LIVES[method]).budget(sizes_of(model))  # type: ignore[attr-defined]
    save_adapter(model, tmp_path)
    torch.manual_seed(0)
    again = load_adapter(vit(depth=2)(), tmp_path).eval()
    assert torch.equal(again(x), model(x)) and count_parameters(again) == count_parameters(model)
    torch.testing.assert_close(merge(again)(x), y, rtol=1e-4, atol=1e-5)


def method_of(model: nn.Module) -> Method:
    return next(iter(model.__dict__["_peft_record"].adaptations.values())).method


def sizes_of(model: nn.Module) -> Iterator[int]:
    return [
        n for s in sites_of(model, method_of(model)) for n in (s.graft.shape[0] * s.graft.shape[1], s.graft.shape[0])
    ]  # type: ignore[return-value]


def test_free_child_tuning_masks_gradients_anew_each_step():
    model, _ = begun("child_tuning", {"kind": "free", "share": 0.25})
    weight = model.blocks[0].mlp.fc1.weight
    shares = []
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        lifecycle.before_step(model)
        assert set(weight.grad.unique().tolist()) == {0.0, 4.0}
        shares.append(weight.grad.clone())
    assert abs(float((shares[0] > 0).float().mean()) - 0.25) < 0.03 and not torch.equal(*shares)


def test_samples_of_any_batch():
    batch = {
        "x": torch.arange(4).view(2, 2),
        "words": ["a", "b"],
        "scale": 2.0,
        "pair": (torch.zeros(2), torch.ones(2)),
    }
    first, second = lifecycle.samples_of(batch)
    assert first["x"].tolist() == [[0, 1]] and second["words"] == ["b"] and first["scale"] == 2.0
    assert second["pair"][1].tolist() == [1.0]


def test_far_trains_whole_nodes():
    model, method, _ = prepared("far", share=0.05, priming=2, priming_lr=1e-2)
    for block in model.blocks:
        first, last = block.mlp.fc1.peft.far.fc1, block.mlp.fc2.peft.far.fc2
        nodes = first.bias_indices.tolist()
        assert len(nodes) == 10 and last.bias_indices is None  # 192 · 0.05
        assert first.indices.tolist() == [node * 48 + column for node in nodes for column in range(48)]
        assert last.indices.tolist() == sorted(row * 192 + node for node in nodes for row in range(48))


@pytest.mark.parametrize(("name", "more"), [("fish_mask", {"samples": 4}), ("fish_dip", {"samples": 2, "every": 2})])
def test_lightning_prepares_and_a_stopped_run_takes_the_sizes_of_its_checkpoint(tmp_path, name: str, more: dict):
    def fit(epochs: int, checkpoint: str | None = None) -> tuple[Fits, Trainer]:
        torch.manual_seed(0)
        module = Fits(adapt(vit(depth=1)(), name, share=0.02, **more))
        with quiet():
            trainer = Trainer(
                max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                enable_model_summary=False,
            )  # fmt: skip
            loader = torch.utils.data.DataLoader(pictures(), batch_size=None)
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    whole, _ = fit(2)
    first, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(2, str(tmp_path / "last.ckpt"))
    states = [module.model.state_dict() for module in (whole, second)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(value.any() for key, value in states[0].items() if key.endswith(".values"))
