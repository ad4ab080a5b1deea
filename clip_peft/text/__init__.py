"""The text tower: templates, prompts, packed classes, and the pass that computes only what differs."""
