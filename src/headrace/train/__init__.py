"""Training of draft heads on what a model itself says."""
