"""The frozen base: what it is, how it is loaded, its texts and its tokens."""
