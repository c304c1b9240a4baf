"""Measurements of forecasting models; run from the checkout (see README.md)."""
