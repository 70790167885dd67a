"""`python -m atrous explain --slopes`: the learned PReLU slopes of a checkpoint."""
