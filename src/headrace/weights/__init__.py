"""Checkpoints: where a model's files are, what they hold, and how a tensor gets out of them.

Nothing is imported here: ``resolve`` and ``gguf_reader`` serve processes that never load torch.
"""
