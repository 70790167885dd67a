"""The commands of `python -m atrous`."""
