"""Backbones and references by name: one reach, one cache root."""
