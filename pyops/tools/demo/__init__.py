"""`python -m atrous demo`: agreement and speed beside eager and torch.compile."""
