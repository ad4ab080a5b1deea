"""Weights of few bits: levels, what is packed and read again, how large files are, and when a file's statistics are over."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from peft_core import PeftError, adapt, load_adapter, merge, save_adapter
from peft_core.lifecycle import Progress, after_step, load_state, state
from peft_core.parts.quantised.few_bits import FewBits, from_bits, levels, to_bits
from peft_core.testing import perturb
from tests.tiny import MODELS


@pytest.mark.parametrize("bits", range(1, 9))
def test_what_is_packed_reads_the_same_to_the_last_bit(bits: int) -> None:
    torch.manual_seed(bits)
    weight = FewBits(torch.randn(7, 13) * 0.02 + 0.3, bits)
    data = weight.pack(dict(weight.named_parameters()))
    assert len(data) == weight.packed_size({}) == -(-7 * 13 * bits // 8) + 8
    again = FewBits(torch.randn(7, 13), bits)
    again.load_state_dict(weight.unpack(data))
    assert torch.equal(again(), weight())
    assert torch.equal(again.pack(dict(again.named_parameters())), data)


def test_whole_numbers_as_bits() -> None:
    assert to_bits(torch.tensor([1, 0, 1, 1]), 1).tolist() == [0b1101]
    assert to_bits(torch.tensor([1, 2, 3]), 2).tolist() == [0b111001]
    assert from_bits(to_bits(torch.arange(8).repeat(3), 3), 3, 24).tolist() == [*range(8)] * 3


def test_levels_stand_in_the_middle_of_what_is_nearest() -> None:
    for bits in (1, 2, 4, 8):
        values, edges = levels(bits)
        torch.testing.assert_close(values, -values.flip(0), rtol=0, atol=1e-9)
        assert (edges[1:] > edges[:-1]).all()
    torch.testing.assert_close(levels(1)[0][1], torch.special.ndtri(torch.tensor(0.75, dtype=torch.float64)))


def test_the_gradient_passes_the_rounding() -> None:
    torch.manual_seed(0)
    weight = FewBits(torch.randn(3, 4, dtype=torch.float64), 2)
    g = torch.randn(3, 4, dtype=torch.float64)
    (weight() * g).sum().backward()
    w = weight.weight.detach().clone().requires_grad_()
    z = (w - w.mean()) / (w.std() + 1e-5)
    codes, edges = levels(2)
    level = codes[torch.bucketize(z.detach(), edges)]
    y = (level + (z - z.detach())) * w.std() + w.mean()
    torch.testing.assert_close(weight.weight.grad, torch.autograd.grad((y * g).sum(), w)[0])


@pytest.mark.parametrize(
    "method, settings, kilobytes", [("bi_adaptformer", {"bottleneck": 1}, 7.08), ("bi_lora", {"rank": 1}, 9.52)]
)
def test_files_are_as_small_as_the_authors(
    tmp_path: Path, method: str, settings: dict[str, Any], kilobytes: float
) -> None:
    """Their mean over VTAB-1k, of 49.5 classes; here the head's bias (198 bytes) and the names of two tensors come to it."""
    model = timm.create_model("vit_base_patch16_224", num_classes=50)
    adapt(model, method, head_bits=1, **settings)
    save_adapter(model, tmp_path)
    size = (tmp_path / "adapter.safetensors").stat().st_size
    head = 50 * 768 / 8 + 8
    numbers = {"bi_adaptformer": 18_432, "bi_lora": 36_864}[method]
    matrices = {"bi_adaptformer": 24, "bi_lora": 48}[method]
    assert size - (numbers / 8 + 8 * matrices + head) <= 400 and size / 1024 < kilobytes + 0.5


def adapted(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = adapt(MODELS["vit"].model(), "bi_lora", rank=2, alpha=20.0, dropout=0.0, **settings)
    perturb(model)
    return model.eval()


def test_a_head_of_few_bits_travels_and_merges(tmp_path: Path) -> None:
    vit = MODELS["vit"]
    model = adapted(head_bits=1)
    y = vit(model)
    save_adapter(model, tmp_path)
    assert sorted(load_file(tmp_path / "adapter.safetensors")) == ["head.bias", "peft.bi_lora.packed"]
    again = load_adapter(vit.model().eval(), tmp_path)
    assert torch.equal(vit(again), y)
    torch.testing.assert_close(vit(merge(again)), y, rtol=1e-5, atol=1e-5)
    assert len(again.head.weight.unique()) == 2
    with pytest.raises(PeftError, match="packs the head, which is the model's own: load it first"):
        load_adapter(adapt(vit.model(), "lora", rank=2), tmp_path, prefix="second_")


def test_a_frozen_head_is_not_packed(tmp_path: Path) -> None:
    vit = MODELS["vit"]
    model = adapt(vit.model().eval(), "bi_adaptformer", bottleneck=2, head_bits=1, train_head=False)
    save_adapter(model, tmp_path)
    assert "head.weight" not in load_file(tmp_path / "adapter.safetensors")
    assert torch.equal(vit(load_adapter(vit.model().eval(), tmp_path)), vit(model))


def test_a_loaded_adapter_trains_on_and_resumes_alike(tmp_path: Path) -> None:
    """A file's mean and deviation stand until a step, then the weight's own; a checkpoint in between goes on the same."""
    vit = MODELS["vit"]
    save_adapter(adapted(), tmp_path)
    models = [load_adapter(vit.model(), tmp_path) for _ in range(2)]

    def step(model: nn.Module, number: int) -> None:
        F.cross_entropy(vit(model.train()), torch.tensor([0, 2])).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
        after_step(model, Progress(number, 2))
        model.zero_grad()

    statistics = [module for name, module in models[0].named_buffers() if name.endswith("statistics")]
    assert all(s[1] > 0 for s in statistics)
    for number in (1, 2):
        step(models[0], number)
        assert not any(s.any() for s in statistics)
        if number == 1:
            kept, weights = state(models[0]), {k: v.clone() for k, v in models[0].state_dict().items()}
    models[1].load_state_dict(weights)
    load_state(models[1], kept)
    step(models[1], 2)
    assert all(
        torch.equal(a, b) for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
    )


def test_packed_weights_of_another_length_are_refused(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path)
    file = tmp_path / "adapter.safetensors"
    tensors = load_file(file)
    whole = tensors["peft.bi_lora.packed"]
    for damaged, words in ((whole[:-1], "bytes, and it takes more"), (torch.cat((whole, whole[:3])), "and it takes")):
        save_file(tensors | {"peft.bi_lora.packed": damaged}, file)
        with pytest.raises(PeftError, match=f"the packed weights of bi_lora do not fit this model: .*{words}"):
            load_adapter(MODELS["vit"].model(), tmp_path)
    save_file({key: tensor for key, tensor in tensors.items() if "packed" not in key}, file)
    with pytest.raises(PeftError, match="the file lacks"):
        load_adapter(MODELS["vit"].model(), tmp_path)


def test_a_model_without_a_linear_head_has_none_to_round() -> None:
    with pytest.raises(PeftError, match="bi_lora finds no linear classifier to round: leave head_bits out"):
        adapt(MODELS["unet"].model(), "bi_lora", rank=2, head_bits=1)
    with pytest.raises(PeftError, match=r"bits must be in \[1, 8\], not 9"):
        adapt(MODELS["vit"].model(), "bi_adaptformer", bits=9)
