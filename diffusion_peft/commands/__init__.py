"""The commands of `diffusion_peft`, a file each."""
