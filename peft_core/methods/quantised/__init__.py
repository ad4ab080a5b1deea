"""Methods that stand on a quantised backbone, or quantise what they add."""
