"""Long-term forecasting of series."""
