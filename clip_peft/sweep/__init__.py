"""`clip_peft sweep`: many runs, their report, the protocols of published tables."""
