"""Models into other files: folders of floats or of few bits, and GGUF."""
