"""Text to token ids and back, and conversations to text. Imports no torch."""
