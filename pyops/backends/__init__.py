"""The backends (library, native, triton) and the selection among them."""
