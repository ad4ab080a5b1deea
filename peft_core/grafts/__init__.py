"""The six ways to join something to a frozen model."""
