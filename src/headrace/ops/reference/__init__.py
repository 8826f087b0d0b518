"""Torch references: the oracle of every operator, on any device. Plain code first, speed second."""
