"""Exact fast paths: autograd functions and nothing else."""
