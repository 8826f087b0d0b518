"""Checks of a model that a user runs: is it exact here."""
