"""Methods that need diffusion models: one file a method."""
