"""Exact parameter counts on ViT-B/16, built on the meta device."""

from typing import Any

import pytest

from peft_core import adapt, count_parameters, list_methods
from peft_core.attach import is_inserted
from peft_core.registry import find_method
from tests.tiny import vit_b16

VIT_B16 = [
    ("full", {}, 85_798_656),
    ("linear", {}, 0),
    ("bitfit", {}, 102_912),
    ("layer_norm", {}, 38_400),
    ("vpt", {"tokens": 10}, 7_680),
    ("vpt", {"tokens": 10, "deep": True}, 92_160),
    ("adaptformer", {"bottleneck": 8}, 156_768),
    ("adaptformer", {"bottleneck": 64}, 1_189_632),
    ("ssf", {}, 205_824),
    ("adapter", {"bottleneck": 8, "position": "pfeiffer"}, 156_768),
    ("adapter", {"bottleneck": 8, "position": "parallel"}, 156_768),
    ("adapter", {"bottleneck": 8, "position": "houlsby"}, 313_536),
    ("adapter_plus", {"bottleneck": 8}, 165_984),
    ("ia3", {}, 55_296),
    ("dora", {"rank": 8, "targets": ("q", "v")}, 313_344),
    ("loha", {"rank": 8, "targets": ("q", "v")}, 589_824),
    ("lokr", {"rank": 8, "targets": ("q", "v")}, 26_112),
    ("oft", {"targets": ("q", "v")}, 285_696),
    ("lora", {"rank": 8, "targets": ("q", "v")}, 294_912),
    ("lora", {"rank": 8, "targets": ("qkv",)}, 294_912),
    ("lora", {"rank": 8, "targets": ("q", "k", "v", "proj", "fc1", "fc2")}, 1_327_104),
    ("lora", {"rank": 8, "targets": ("qkv", "proj", "fc1", "fc2")}, 1_179_648),
]


STATED = [(name, *stated) for name in list_methods() for stated in find_method(name).vit_b16]
"""What methods say of themselves."""


@pytest.mark.parametrize("method, hyper, inserted", VIT_B16 + STATED, ids=lambda value: str(value))
def test_exact_parameter_count_on_vit_b16(method: str, hyper: dict[str, Any], inserted: int):
    model = adapt(vit_b16(), method, **hyper)
    n = count_parameters(model)
    head = 0 if find_method(method).keeps_head else 76_900
    assert (n.inserted, n.head, n.trainable) == (inserted, 76_900, inserted + head)
    assert n.total == 85_798_656 + 76_900 + sum(p.numel() for key, p in model.named_parameters() if is_inserted(key))
    assert n.by_method == {method: inserted}
