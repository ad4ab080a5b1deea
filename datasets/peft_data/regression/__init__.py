"""Formats of pictures with a number each."""

WANTED = "a .csv file with the columns path and target"
