"""What stands beside an adapter's tensors: its card, of which backbone it is, and what older versions wrote."""
