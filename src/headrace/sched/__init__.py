"""Who computes how many rows in the next step. No tensors, no configuration objects, no clock but the one passed in."""
