"""Runs a rewritten graph: with little host time, frozen, and with gradients."""
