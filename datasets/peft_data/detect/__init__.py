"""Formats of pictures with boxes."""

WANTED = (
    "COCO's annotations (a .json file, or a folder with annotations/instances_train….json), or a VOC folder with "
    "JPEGImages and Annotations"
)
