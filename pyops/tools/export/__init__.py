"""`python -m atrous export`: a package of a model for C++."""
