"""Files of every LyCORIS algorithm change the weights as LyCORIS does; a DoRA's axis is told by its shape."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion_peft.files.layers import layers_of
from diffusion_peft.formats import export_adapter, import_adapter
from peft_core import PeftError, load_adapter, merge, save_adapter
from tests.diffusion_peft.files import differs, same
from tests.diffusion_peft.pipelines import picture, stable_diffusion

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"  # square
FF = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"  # 16 x 64
CONV = "down_blocks.0.resnets.0.conv1"

ALGORITHMS: list[dict[str, Any]] = [
    {"algo": "full"},
    {"algo": "full", "train_norm": True},
    {"algo": "ia3"},
    {"algo": "ia3", "train_on_input": True},
    {"algo": "diag-oft", "linear_dim": 4},
    {"algo": "diag-oft", "linear_dim": 4, "constraint": 0.001, "rescaled": True},
    {"algo": "glora"},
    {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    {"algo": "loha", "dora_wd": True},
    {"algo": "loha", "dora_wd": True, "wd_on_output": False, "use_tucker": True},
    {"algo": "lokr", "dora_wd": True, "factor": 4},
    {"algo": "lokr", "dora_wd": True, "wd_on_output": False, "factor": 4},
]


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    return picture(stable_diffusion("sd15"))


@pytest.mark.parametrize("settings", ALGORITHMS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_picture_is_that_of_lycoris(settings, plain, tmp_path):
    from lycoris import create_lycoris

    pipeline = stable_diffusion("sd15")
    torch.manual_seed(1)
    network = create_lycoris(pipeline.unet, 1.0, **{"linear_dim": 2, "linear_alpha": 1.5, "preset": "full"} | settings)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        expected = picture(pipeline)
    assert differs(expected, plain)
    network.save_weights(str(tmp_path / "l.safetensors"), torch.float32, {})
    fresh = stable_diffusion("sd15")
    result = import_adapter(fresh.unet, None, tmp_path / "l.safetensors", name="style")
    assert result.unmatched == () and result.matched["unet"] > 40
    same(picture(fresh), expected)
    save_adapter(fresh.unet, tmp_path / "ours")
    again = load_adapter(stable_diffusion("sd15").unet, tmp_path / "ours")
    file = export_adapter(again, None, tmp_path / "again.safetensors", "kohya", name="style")
    merge(fresh.unet)
    same(picture(fresh), expected)
    written = stable_diffusion("sd15")
    assert import_adapter(written.unet, None, file).unmatched == ()
    same(picture(written), expected)


def file_of(path: str, tmp_path, **tensors: torch.Tensor):
    name = f"lora_unet_{path.replace('.', '_')}"
    save_file({f"{name}.{key.replace('__', '.')}": value for key, value in tensors.items()}, tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


@pytest.mark.parametrize("path", [TO_Q, FF, CONV])
@pytest.mark.parametrize("axis", ["outputs", "inputs", "outputs, flat"])
def test_the_axis_of_a_magnitude_is_told_by_its_shape(path, axis, tmp_path):
    """W' = m V/‖V‖ with V = W + B A, norms over each output's weights or over each input's."""
    unet = stable_diffusion("sd15").unet
    weight = unet.get_submodule(path).weight.detach().clone()
    down, up = torch.randn(2, *weight.shape[1:]) * 0.1, torch.randn(len(weight), 2) * 0.1
    v = weight + (up @ down.flatten(1)).view(weight.shape)
    dims = [n for n in range(weight.dim()) if n != (1 if axis == "inputs" else 0)]
    norm = v.square().sum(dims, keepdim=True).sqrt()
    m = norm * (1 + 0.3 * torch.rand(norm.shape))
    ups = up.view(*up.shape, *[1] * (weight.dim() - 2))
    file = file_of(path, tmp_path, lora_down__weight=down, lora_up__weight=ups, alpha=torch.tensor(2.0),
                   dora_scale=m.flatten() if "flat" in axis else m)  # fmt: skip
    import_adapter(unet, None, file)
    torch.testing.assert_close(merge(unet).get_submodule(path).weight, m * v / norm)


def test_shapes_that_fit_nothing_are_named(tmp_path):
    unet = stable_diffusion("sd15").unet
    rows, columns = unet.get_submodule(FF).weight.shape
    factors = {"lora_down__weight": torch.ones(2, columns), "lora_up__weight": torch.ones(rows, 2)}
    file = file_of(FF, tmp_path, **factors, dora_scale=torch.ones(7, 1))
    with pytest.raises(PeftError, match=r"its magnitude is \(7,\), and a weight of \(16, 64\) needs \(16,\)"):
        import_adapter(unet, None, file)
    file = file_of(FF, tmp_path, lora_down__weight=torch.ones(2, 5), lora_up__weight=torch.ones(rows, 2))
    with pytest.raises(PeftError, match=r"its A is \(2, 5\), and a weight of \(16, 64\) needs \(2, 64\)"):
        import_adapter(unet, None, file)
    file = file_of(FF, tmp_path, oft_blocks=torch.ones(3, 5, 5).triu(1))
    with pytest.raises(PeftError, match="its blocks of 5 do not divide 16 outputs"):
        import_adapter(unet, None, file)
    assert "_peft_record" not in unet.__dict__


def test_first_files_of_glora(tmp_path):
    """There the factors of each product stand under each other's names."""
    unet = stable_diffusion("sd15").unet
    weight = unet.get_submodule(FF).weight.detach().clone()
    left, right, up, down = torch.randn(64, 2), torch.randn(2, 64), torch.randn(16, 2), torch.randn(2, 64)
    old = {"a2": left * 0.1, "a1": right * 0.1, "b2": up * 0.1, "b1": down * 0.1}
    file = file_of(FF, tmp_path, **{f"{key}__weight": value for key, value in old.items()}, alpha=torch.tensor(1.0))
    import_adapter(unet, None, file)
    wanted = weight + 0.5 * (weight @ old["a2"] @ old["a1"] + old["b2"] @ old["b1"])
    torch.testing.assert_close(merge(unet).get_submodule(FF).weight, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "whole"])
def test_values_that_are_no_numbers_are_refused(bad, tmp_path):
    down, up = torch.ones(2, 64), torch.ones(16, 2)
    if bad == "whole":
        up = up.long()
    else:
        up[3, 1] = bad
    unet = stable_diffusion("sd15").unet
    words = "holds int64, where weights belong" if bad == "whole" else "holds values that are no numbers"
    with pytest.raises(PeftError, match=f"lora_up.weight {words}"):
        import_adapter(unet, None, file_of(FF, tmp_path, lora_down__weight=down, lora_up__weight=up))
    assert layers_of(unet, None) == {}
