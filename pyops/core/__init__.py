"""The vocabulary of every layer: geometry, epilogue, activations, layouts, and the checks of arguments."""
