"""What several CLIP methods are made of: learnt contexts, deep prompts, feature adapters, probes, caches, views."""
