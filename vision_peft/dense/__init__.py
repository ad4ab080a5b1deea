"""Tasks with an output for every pixel, on feature maps of a frozen backbone."""
