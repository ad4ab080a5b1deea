"""Tasks on feature maps of a frozen backbone: pixels, boxes."""
