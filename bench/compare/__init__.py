"""Compare this working tree with an earlier commit, or with a results file: make bench-compare BASE=..."""
