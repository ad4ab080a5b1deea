"""Personal concepts: joining and compressing those of Custom Diffusion, and sliders."""
