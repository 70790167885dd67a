"""`python -m atrous explain`: a model's layers, the backend of each, and the lower bound of its time."""
