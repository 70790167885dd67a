"""The report of finished runs: an HTML page with pictures, and the check of the ROC area for `make experiment`."""
