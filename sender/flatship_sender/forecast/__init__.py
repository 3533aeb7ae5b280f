"""Forecasts: what a transfer will take, and how good earlier forecasts of it were."""
