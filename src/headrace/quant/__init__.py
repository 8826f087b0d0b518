"""Weights of a few bits: their formats, how they are made, and which weights of a model get which."""
