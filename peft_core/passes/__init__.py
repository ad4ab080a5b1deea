"""Frozen parts that run once: below the first trained block, and for several adapted models."""
