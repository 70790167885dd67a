"""Finds the sites of a graph, and replaces each by one call or the operators it comes to."""
