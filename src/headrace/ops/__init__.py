"""Operators: one name each, a torch reference, and later native versions behind the same name."""
