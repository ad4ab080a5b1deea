"""Editing: a picture made of a source as an instruction says, learnt from pairs of source and target."""
