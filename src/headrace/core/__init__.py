"""Pure data: what travels between the parts. Imports no torch, and nothing from the rest of the package."""
