"""What methods fill grafts with: weight changes, bottlenecks, factors, scales."""
