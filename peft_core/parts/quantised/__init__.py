"""Weights of few bits: packed ones, ones that read as rounded, and what is left of them as a low-rank change."""
