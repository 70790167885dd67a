"""Vessel segmentation on fundus images: an experiment on the fused ops, from data to report."""
