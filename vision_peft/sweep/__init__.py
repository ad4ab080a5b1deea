"""`vision_peft sweep`: many runs, their stamps, tables and report."""
