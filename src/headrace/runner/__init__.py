"""One worker's device side: from a plan to tokens."""
