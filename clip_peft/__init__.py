"""Adapting CLIP models of open_clip with few parameters."""
