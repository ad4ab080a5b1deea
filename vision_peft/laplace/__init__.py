"""Calibrated probabilities of a finished run: a Gaussian over its LoRA weights."""
