"""Prompts: tokens that join the sequence."""
