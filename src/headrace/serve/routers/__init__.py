"""Routers: one module for each API family."""
