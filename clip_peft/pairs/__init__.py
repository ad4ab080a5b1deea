"""Pairs of picture and caption: both towers of a CLIP model adapted by a contrastive loss, searched and scored by retrieval."""
