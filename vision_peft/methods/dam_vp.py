import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_core.anatomies import submodule
from peft_core.attach import slots_of
from peft_core.errors import PeftError
from peft_core.grafts.calls import root, state
from peft_core.method import Method, Plan
from peft_core.parts.tokens.pixels import Frame, PixelPrompt, frame_of
from peft_core.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class DAMVP(PixelPrompt):
    """DAM-VP: pictures are clustered by the frozen model's features, and each gets the frame of its nearest cluster.

    Huang et al., "Diversity-Aware Meta Visual Prompting", CVPR 2023. x ← x + P_j on the frame of the normalised picture, j =
    argmin_k ‖f(x) − c_k‖, f what the head receives from x without a frame, in one more pass of the frozen model. `prepare`
    clusters the first 1,000 training pictures (average linkage; clusters closer than the threshold join), c_k (D) is a
    cluster's mean, and every cluster begins with the same P (3 n): that of `source`, which `vision_peft dam_vp` meta-trained
    on several data sets, else drawn from N(0, 1), as meta-training itself begins in shikiw/DAM-VP (dec5821); the authors'
    prompts, of six data sets, are not shipped. Their form without a head is left out. As there: border 30; threshold 10 for
    ImageNet-21k ViTs, whose features it measures (31 ImageNet-1k: preset `dam_vp_in1k`; 20 Swin, 18 MoCo v3); prompts by SGD
    without momentum (misspelt there), head by SGD at 0.1, 50 epochs, a fifth of them warm-up: recipe `dam_vp`. Drop path and
    dropout act in both passes. Not identical at step 0. 69,840 parameters a cluster at 224 pixels.

    Args:
        border: the frame's pixels on each side; 30/224 of the picture's side where None.
        mean: not used: the frame is added to the normalised picture.
        std: likewise.
        threshold: mean distance of two clusters' features below which they are one.
        pictures: that are clustered.
        rate: the prompts' learning rate; the run's where None.
        source: a folder of `vision_peft dam_vp`, of the same backbone, border and size of pictures.
    """

    threshold: Positive = 10.0
    pictures: Count = 1000
    rate: Positive | None = None
    source: str | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 69_840),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(border=5, threshold=1e-3, mean=(0.0,) * 3, std=(1.0,) * 3),)

    def install(self, plan: Plan) -> None:
        place, made_of = self.at(plan)
        frame = OfClusters(**made_of)
        frame.__dict__["model"] = plan.model  # no second place among the submodules
        plan.join(place.module, "frame", frame)

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        frame = frame_of(model, self)
        if self.source is not None:
            start = read_prompt(self.source, frame)
            with torch.no_grad():
                frame.prompts.copy_(start.to(frame.prompts).expand_as(frame.prompts))
        frame.gathered = []
        try:
            with torch.no_grad():
                for _ in losses:
                    if sum(map(len, frame.gathered)) >= self.pictures:
                        break
            features = torch.cat(frame.gathered)[: self.pictures].float()
        finally:
            frame.gathered = None
        frame.hold(centres_of(features, self.threshold))

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        prompts = [frame_of(model, self).prompts]
        return ({"params": prompts, "lr": self.rate or lr, "weight_decay": 0.0, "momentum": 0.0},)

    def as_trained(self, model: nn.Module) -> Self:
        return replace(self, source=None)


class OfClusters(Frame):
    """The picture with its cluster's P_k (K 3 n) added; c_k in `centres` (K D)."""

    def __init__(self, **made_of: Any) -> None:
        super().__init__(**made_of)
        self.prompts = nn.Parameter(torch.randn(1, 3, self.count, **made_of["options"]))
        self.register_buffer("centres", torch.zeros(1, 0, **made_of["options"]))
        self.gathered: list[Tensor] | None = None
        self.routed: Tensor | None = None
        """The cluster of each picture (B) while somebody knows it, who lets pictures pass more than once."""
        self.place, self.key = ("", "", ""), ""

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.place, self.key = (adaptation, path, slot), f"{adaptation}/{path}/{slot}/routing"

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if "centres" in tensors:
            self.hold(self.centres.new_zeros(tensors["centres"].shape))  # type: ignore[operator]

    @torch.no_grad()
    def hold(self, centres: Tensor) -> None:
        """Takes other clusters, whose prompts are all the first one's."""
        self.centres = centres.to(self.centres)  # type: ignore[arg-type]
        self.prompts.data = self.prompts.data[:1].repeat(len(centres), 1, 1)

    def before(self, x: Tensor) -> Tensor:
        return x if self.key in state() else super().before(x)

    def pixels(self, x: Tensor) -> Tensor:
        if self.gathered is not None:
            self.gathered.append(self.features(x))
            return self.prompts[0]
        if len(self.prompts) == 1:
            return self.prompts[0]
        return self.prompts[self.routes(x) if self.routed is None else self.routed]

    def routes(self, x: Tensor) -> Tensor:
        """The nearest cluster of each picture, B."""
        centres: Any = self.centres
        return torch.cdist(self.features(x)[None].float(), centres[None].float())[0].argmin(-1)

    def features(self, x: Tensor) -> Tensor:
        """f(x), B D, of the model without this frame."""
        here, model = state(), root()
        if model is None or not self.is_of(
            model
        ):  # a part is called, maybe after another model's forward that Ctrl-C ended
            model = self.__dict__["model"]
        here[self.key] = True
        try:
            with torch.no_grad():
                return features_of(model, x)
        finally:
            del here[self.key]

    def is_of(self, model: nn.Module) -> bool:
        adaptation, path, slot = self.place
        module = submodule(model, path)
        slots = {} if module is None else slots_of(module)
        return adaptation in slots and slot in slots[adaptation] and slots[adaptation][slot] is self


def centres_of(features: Tensor, threshold: float) -> Tensor:
    """Clusters' means, K D, of features N D: average linkage, until the nearest two are the threshold apart."""
    from sklearn.cluster import AgglomerativeClustering

    if len(features) == 1:  # which sklearn refuses
        return features
    rule = AgglomerativeClustering(None, linkage="average", distance_threshold=threshold)  # type: ignore[arg-type]
    labels = torch.from_numpy(rule.fit(features.cpu().numpy()).labels_).to(features.device)
    return torch.stack([features[labels == k].mean(0) for k in range(int(labels.max()) + 1)])


PROMPT = "prompt.safetensors"


def read_prompt(folder: str | os.PathLike, frame: OfClusters) -> Tensor:
    """The meta-trained prompt of a folder, 3 n.

    Raises:
        PeftError: there is none, or one of another frame.
    """
    file, remedy = Path(folder).expanduser() / PROMPT, "make one with `vision_peft dam_vp`"
    try:
        prompt = load_file(file)["prompt"]
    except (OSError, SafetensorError, KeyError) as error:
        raise PeftError(f"dam_vp: {folder} holds no prompt ({type(error).__name__}): {remedy}.") from None
    if prompt.shape != frame.prompts.shape[1:]:
        raise PeftError(
            f"dam_vp: the frame of {folder} has {prompt.shape[-1]} pixels, and this one {frame.count}: take its border and size "
            "of pictures."
        )
    return prompt


def features_of(model: Any, x: Tensor) -> Tensor:
    """What the head receives; without a head what the model, or its image tower, gives."""
    if hasattr(model, "forward_head"):
        return model.forward_head(model.forward_features(x), pre_logits=True)
    for part in ("image", "visual", "vit"):
        if hasattr(model, part):
            return features_of(getattr(model, part), x)
    return model.forward(x)
