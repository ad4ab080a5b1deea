"""Personalising and controlling Stable Diffusion models of diffusers with few parameters."""
