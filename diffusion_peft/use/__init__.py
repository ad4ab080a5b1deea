"""A finished run and what is done with it."""
