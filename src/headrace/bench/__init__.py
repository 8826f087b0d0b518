"""Measuring: this machine's limits, and what the engine makes of them."""
