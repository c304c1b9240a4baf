"""Measurements of the Long Range Arena suite, and published results to hold them against (see README.md)."""
