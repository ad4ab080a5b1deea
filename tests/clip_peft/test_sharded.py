"""CLIP models and what learns beside them under FSDP2, in one process."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from clip_peft import OpenVocabulary
from peft_core import PeftError
from tests.clip_peft.models import NAMES, clip, custom_clip, pictures, tokenizer

LABELS = torch.tensor([0, 1, 2, 3])


@pytest.fixture(scope="module")
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("build, method, hyper", [
    (clip, "coop", dict(context=4)), (clip, "lora", dict(rank=2)), (custom_clip, "maple", dict(depth=2)), (clip, "kgcoop", {}),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_sharding_changes_neither_logits_nor_gradients(
    build: Any, method: str, hyper: dict[str, Any], one_process: Any
):
    from torch.distributed.fsdp import fully_shard

    models = [build(), build()]
    torch.manual_seed(0)
    whole = OpenVocabulary(models[0], method, NAMES, tokenizer(), **hyper).eval()
    torch.manual_seed(0)
    sharded = OpenVocabulary(models[1], method, NAMES, tokenizer(), **hyper).eval()
    text = getattr(sharded.model, "text", sharded.model)
    for block in (*text.transformer.resblocks, *sharded.model.visual.transformer.resblocks):
        fully_shard(block, mesh=one_process)
    fully_shard(sharded, mesh=one_process, ignored_params={sharded.model.logit_scale})  # FSDP2 takes no scalars
    torch.testing.assert_close(sharded(pictures()), whole(pictures()), rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(sharded(pictures()), whole(pictures()), rtol=1e-4, atol=1e-3)
    for model in (whole, sharded):
        torch.nn.functional.cross_entropy(model(pictures()), LABELS).backward()
    expected = {name: p.grad for name, p in whole.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in sharded.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.full_tensor(), expected[name], rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]


def test_replicas_are_refused():
    whole = OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=4)
    with pytest.raises(PeftError, match="use DistributedDataParallel, or one device"):
        whole._replicate_for_data_parallel()(pictures())
