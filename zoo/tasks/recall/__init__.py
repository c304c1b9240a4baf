"""Recall: finding again what stood earlier in the sequence."""
