"""Annotated pictures: what files of COCO and VOC say of each, read for image-level labels and for boxes alike."""
