"""How fast decoding could be on this machine if nothing but reading memory took time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roofline:
    """A decode step reads every weight once, for all sequences together, and each sequence's keys and values. Of
    experts it reads those that some sequence is sent to: as many as there are on average where all choices are as
    likely.

    Left out, so the real limit is a little lower: writing, activations, arithmetic. Left out the other way: sliding
    layers read no more than their window, and an input embedding that is not shared with the head is read by row.
    """

    bandwidth: float
    """Bytes read a second, measured."""
    weights: int
    """Bytes of all weights, in the type they are kept in."""
    kv_bytes_per_token: float
    """Bytes of keys and values of one token, all layers."""
    experts: int = 0
    """Bytes among ``weights`` of experts that rows are sent to."""
    expert_share: float = 0.0
    """Of the experts, those that one sequence is sent to."""

    def weight_bytes(self, sequences: int) -> float:
        """Bytes of weights that one step of ``sequences`` sequences reads."""
        return self.weights - self.experts * (1.0 - self.expert_share) ** sequences

    def step_bytes(self, sequences: int, context: float) -> float:
        """Bytes that one step of ``sequences`` sequences of ``context`` tokens reads."""
        return self.weight_bytes(sequences) + sequences * context * self.kv_bytes_per_token

    def tokens_per_second(self, sequences: int, context: float) -> float:
        """Most tokens a second, one a sequence and step."""
        return sequences * self.bandwidth / self.step_bytes(sequences, context)
