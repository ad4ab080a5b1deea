"""Optimisers that save memory, for any loop of PyTorch: `torch.optim.Optimizer` subclasses."""
