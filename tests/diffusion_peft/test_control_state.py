"""Controls keep nothing of a call on the model: threads, failed forwards, activation checkpointing, several calls a step."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_peft.base.bases import load_base
from diffusion_peft.control import controls_of, set_condition
from diffusion_peft.control.use import Conditions
from diffusion_peft.drawing.draw import Drawing, Prompt, calls_of, draw
from peft_core import adapt
from tests.diffusion_peft import control
from tests.diffusion_peft.pipelines import stable_diffusion, train

METHODS = control.METHODS | {"normed": {"shrink": 1, "join": "norm"}}


def controlled(method: str) -> Any:
    unet = stable_diffusion("sd15").unet
    adapt(unet, "controlnet" if method == "normed" else method, **METHODS[method])
    train(unet)
    return unet


def condition(unet: Any, seed: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    boxes = torch.rand(1, 3, 4, generator=chance)
    every = {
        "picture": torch.rand(1, 3, 8, 8, generator=chance), "features": torch.randn(1, 6, generator=chance),
        "null": torch.zeros(1, 6), "boxes": boxes, "phrases": torch.randn(1, 3, 24, generator=chance),
        "present": torch.ones(1, 3),
    }  # fmt: skip
    (_, root), *_ = controls_of(unet)
    return {key: every[key] for key in root.wants}


def batch(seed: int = 3, **more: Any) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    return {"sample": torch.randn(2, 4, 8, 8, generator=chance), "timestep": torch.tensor([5, 700]),
            "encoder_hidden_states": torch.randn(2, 7, 24, generator=chance)} | more  # fmt: skip


def test_a_condition_goes_where_the_unet_is() -> None:
    unet = controlled("controlnet").eval()
    set_condition(unet, condition(unet, 0))
    with torch.no_grad():
        found = unet.to("meta")(**{key: value.to("meta") for key, value in batch().items()}).sample
    assert found.is_meta and found.shape == (2, 4, 8, 8)


@pytest.mark.parametrize("method", METHODS)
def test_threads_each_with_a_condition_of_its_own(method: str) -> None:
    unet = controlled(method).eval()

    @torch.no_grad()
    def run(seed: int) -> Tensor:
        set_condition(unet, condition(unet, seed))
        return torch.stack([unet(**batch()).sample for _ in range(2)])

    alone = [run(seed) for seed in range(4)]
    assert not torch.allclose(alone[0], alone[1])
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, [0, 1, 2, 3] * 2))
    for seed, found in enumerate(together):
        assert torch.equal(found, alone[seed % 4])
    set_condition(unet, condition(unet, 1))
    with ThreadPoolExecutor(1) as pool, torch.no_grad():  # a thread that was given none takes what was given last
        found = pool.submit(torch.no_grad()(lambda: unet(**batch()).sample)).result()
    assert torch.equal(found, alone[1][0])


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_that_raised_leaves_nothing_behind(method: str) -> None:
    unet = controlled(method)
    set_condition(unet, condition(unet, 0))
    expected = unet(**batch()).sample
    handle = unet.up_blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        unet(**batch())
    handle.remove()
    again = pickle.loads(pickle.dumps(copy.deepcopy(unet)))
    for model in (unet, again):
        torch.testing.assert_close(model(**batch()).sample, expected, rtol=0, atol=0)
    set_condition(unet, None)
    assert not torch.allclose(unet(**batch()).sample, expected)


@pytest.mark.parametrize("method", METHODS)
def test_activation_checkpointing_gives_the_same_gradients(method: str) -> None:
    found = []
    for checkpointing in (False, True):
        unet = controlled(method).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        set_condition(unet, condition(unet, 0))
        unet(**batch()).sample.square().sum().backward()
        set_condition(unet, None)
        found.append({key: p.grad for key, p in unet.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 3
    for key, grad in found[0].items():
        torch.testing.assert_close(found[1][key], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of Heun's in diffusers
@pytest.mark.parametrize("scheduler, calls", [("DDIMScheduler", 4), ("PNDMScheduler", 5), ("HeunDiscreteScheduler", 7)])
def test_a_share_of_the_steps_is_one_of_the_calls(sd15: str, scheduler: str, calls: int) -> None:
    """PNDM calls the UNet once more than it has steps, Heun twice a step but for the last."""
    import diffusers

    base = load_base(sd15)
    base.parts["scheduler"] = getattr(diffusers, scheduler)(steps_offset=1, **(
        {"skip_prk_steps": True} if scheduler.startswith("PNDM") else {}))  # fmt: skip
    assert calls_of(base, 4) == calls
    unet = base.part("unet")
    adapt(unet, "t2i_adapter", shrink=1)
    train(unet)

    class Given:
        def batch(self, entries: Any, dropped: Any = None) -> dict[str, Tensor]:
            return {"picture": torch.stack(list(entries))}

    seen: list[bool] = []
    unet.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append("down_intrablock_additional_residuals" in kwargs), with_kwargs=True
    )
    words = Prompt(torch.randn(1, 7, 24), None)
    for until in (1.0, 0.5):
        seen.clear()
        given = Conditions(unet, [(None, Given(), [torch.rand(3, 8, 8)])], until, calls_of(base, 4))
        draw(base, unet, [(words, 0)], words, Drawing(4, 4.0, 8, 8), before=given)
        acted = calls if until == 1 else calls // 2
        assert seen == [True] * acted + [False] * (calls - acted)
    seen.clear()
    unet(**batch())
    assert seen == [False]  # what was given for those pictures ended with them
