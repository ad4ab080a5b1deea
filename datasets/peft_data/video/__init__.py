"""Clips: which frames of a video are taken, how they are decoded, and batches of them."""
