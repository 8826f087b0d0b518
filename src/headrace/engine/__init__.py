"""The loop, and the front that turns text into requests and tokens into text."""
