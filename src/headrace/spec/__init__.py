"""Proposers of draft tokens. Imports no torch."""

from .in_worker import WorkerProposer
from .ngram import NGramProposer
from .pace import FULL_PACE, AdaptivePace, Pace
from .proposer import NoProposer, Proposer
from .suffix import SuffixProposer
from .user import UserProposer

__all__ = [
    "FULL_PACE",
    "AdaptivePace",
    "NGramProposer",
    "NoProposer",
    "Pace",
    "Proposer",
    "SuffixProposer",
    "UserProposer",
    "WorkerProposer",
]
