"""Weight changes that merge away."""
