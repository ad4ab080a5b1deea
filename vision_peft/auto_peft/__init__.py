"""`vision_peft auto_peft`: a search for widths and blocks by two objectives."""
