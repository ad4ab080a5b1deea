"""Formats of pictures with a depth for each pixel."""

WANTED = "a folder with images and depths (train/ val/ test/ inside or around them): 16-bit PNG, TIFF or .npy of the same names"
