"""Types and checks that all other modules use: conv geometry, epilogue, activations, memory layouts, arguments."""
