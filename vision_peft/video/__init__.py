"""Video classifiers: clips, views, temporal heads."""

import importlib


def __getattr__(name: str):  # models pickled when this was one file hold its names
    if name in ("Classified", "as_video", "suited", "timm_state", "about_clips"):
        return getattr(importlib.import_module("vision_peft.video.classified"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
