"""vision_peft's `Classified`: an image model that gives features, on pictures or on the frames of clips, and a head."""

from torch import nn

from peft_core.anatomies import Anatomy, class_names, join
from peft_core.anatomies import describe as describe_any


def describe(model: nn.Module, at: str) -> Anatomy | None:
    if "vision_peft.video.classified.Classified" not in class_names(model):
        return None
    anatomy = describe_any(model.image, join(at, "image"))  # type: ignore[arg-type]
    if anatomy is not None:
        anatomy.heads = [join(at, "head")]
        # it runs B T 3 H W: the image model's own way from pictures to the first block, and to its output, does not fit
        anatomy.embed = anatomy.finish = None
    return anatomy
