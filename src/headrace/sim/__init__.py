"""Engines without a model: scheduler, cache and loop as they are, over a worker that only makes up tokens."""
