"""The HTTP server: one router for each API family, over an engine that it knows as a small protocol."""
