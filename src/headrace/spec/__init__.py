"""Proposers of draft tokens. Imports no torch."""

from .ngram import NGramProposer
from .proposer import NoProposer, Proposer

__all__ = ["NGramProposer", "NoProposer", "Proposer"]
