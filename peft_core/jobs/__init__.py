"""The upper floor: what the three programs share."""
