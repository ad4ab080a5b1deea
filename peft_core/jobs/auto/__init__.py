"""`auto`: settings chosen by successive halving on val, then trained as `fit` would."""
