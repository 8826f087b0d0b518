"""One file per architecture: short compositions of layers, found by the name in the checkpoint's configuration."""
