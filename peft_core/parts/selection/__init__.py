"""Which entries of stock weights train: budgets, scores, gates."""
