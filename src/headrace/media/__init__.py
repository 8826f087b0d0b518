"""Media of prompts: from what a user gives to what a model's encoder reads. No torch."""
