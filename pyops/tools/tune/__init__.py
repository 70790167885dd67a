"""`python -m atrous tune`: benchmark every backend on a model's layers and save the fastest."""
