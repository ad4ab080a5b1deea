"""Drawing pictures from an adapted base."""
