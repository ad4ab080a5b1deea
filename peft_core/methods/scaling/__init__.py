"""Scales and shifts of features."""
