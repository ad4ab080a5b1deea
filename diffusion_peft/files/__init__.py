"""Adapter files of other programs: layer names, embeddings, where a file came from."""
