"""Formats of pictures with a class for each pixel."""

WANTED = (
    "a folder with images and masks (train/ val/ test/ inside or around them), a VOC folder with JPEGImages and "
    "SegmentationClass, or ADE20K's folder with images/training and annotations/training"
)
