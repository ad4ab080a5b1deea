"""Passes over a model and over the data: frozen parts that run once, also for several adapted models; losses before training."""
