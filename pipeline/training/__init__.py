"""Training: one plain PyTorch loop, and what launches it."""
