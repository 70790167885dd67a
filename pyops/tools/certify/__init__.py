"""`python -m atrous certify`: the error of each operator, dtype and backend against fp64 on this machine."""
