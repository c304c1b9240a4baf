"""Measurements; run from the checkout, never part of the installed package."""
