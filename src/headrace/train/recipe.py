"""From a model and data to a trained head in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import ConfigError
from headrace.weights.checkpoint import Checkpoint, open_checkpoint
from headrace.weights.dummy import write_safetensors

from .kinds import KINDS, Tables
from .lessons import Conversation, Lesson, Teacher
from .trainer import Settings, Trainable, Trainer, choose_vocabulary

_HELD = 24
"""Conversations that are kept for the measurement, at most; a tenth, if there are few."""
_SHORTEST = 8
"""Tokens of an answer that teaches anything."""


class Reporter(Protocol):
    """Is told how it goes."""

    def stage(self, what: str, total: float) -> None:
        """A new part begins, of so many units."""
        ...

    def advance(self, to: float, note: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out."""

    folder: Path
    n_lessons: int
    n_tokens: int
    n_held: int
    coverage: float
    """Share of the tokens of answers that the draft vocabulary has."""
    tokens_per_step: list[float]
    """By number of drafts, on held-out conversations: see ``Trainer.tokens_per_step``."""


def train_head(
    path: Path,
    conversations: Sequence[Conversation],
    out: Path,
    *,
    kind: str = "eagle3",
    draft_vocab: int,
    mode: str,
    max_tokens: int,
    settings: Settings,
    reporter: Reporter,
    clock: Clock | None = None,
) -> Trained:
    """Trains a head for the model at ``path`` and writes it to ``out``, in the public layout.

    Args:
        kind: one of ``kinds.KINDS``.
        draft_vocab: tokens that an EAGLE-3 head can guess; an MTP layer guesses any, and learns from these.
        mode: one of ``eval.text_model.MODES``: how the model runs over the conversations.
        max_tokens: of a conversation; what is longer is cut.

    Raises ``ConfigError`` where there is too little to learn from, or the model has too few layers.
    """
    cut = [one.cut(max_tokens) for one in conversations]
    cut = [one for one in cut if len(one.tokens) - one.n_prompt >= _SHORTEST]
    if len(cut) < 2:
        raise ConfigError(f"--data: {len(cut)} conversations have an answer of {_SHORTEST} tokens; two are the least")
    how = KINDS[kind]
    lessons = _lessons(Teacher(path, mode, max_tokens, of_layers=how.of_layers), cut, reporter)
    checkpoint = open_checkpoint(path)
    try:
        config = how.config(checkpoint.config(), draft_vocab)
        held, taught = _held(lessons)
        vocabulary = choose_vocabulary(taught, draft_vocab, config["vocab_size"])
        torch.manual_seed(settings.seed)
        head = how.make(config, lessons[0].states.shape[1])
        tables = _tables(checkpoint)
        _borrow_mlp(head, checkpoint, checkpoint.config()["num_hidden_layers"] - 1)
    finally:
        checkpoint.close()
    how.begin(head, taught, tables, vocabulary)
    clock = clock or SystemClock()
    reporter.stage("training", 1.0)
    for progress in Trainer(head, tables.embedding, vocabulary, settings, clock).train(taught):
        reporter.advance(progress.share, f"loss {progress.loss:.2f}")
    vocabulary = how.finish(head, tables, vocabulary)
    reporter.stage("measuring", len(held))
    trainer = Trainer(head, tables.embedding, vocabulary, settings, clock)
    measured = trainer.tokens_per_step(held, reporter.advance)
    write_safetensors(out, config, how.tensors(head, vocabulary))
    answers = torch.cat([one.tokens[one.n_prompt :] for one in held])
    coverage = (vocabulary.draft_of[answers] >= 0).double().mean().item()
    n_tokens = sum(len(one.tokens) for one in taught)
    return Trained(out, len(taught), n_tokens, len(held), coverage, measured)


def _lessons(teacher: Teacher, conversations: Sequence[Conversation], reporter: Reporter) -> list[Lesson]:
    reporter.stage("states of the model", len(conversations))
    lessons = []
    for number, one in enumerate(conversations, start=1):
        lessons.append(teacher.lesson(one))
        reporter.advance(number)
    return lessons


def _held(lessons: Sequence[Lesson]) -> tuple[list[Lesson], list[Lesson]]:
    """Greedy answers for the measurement, evenly from among all, and the rest."""
    greedy = [index for index, one in enumerate(lessons) if one.temperature == 0] or list(range(len(lessons)))
    n = max(1, min(_HELD, len(greedy) // 10))
    chosen = {greedy[i * len(greedy) // n] for i in range(n)}
    return [lessons[i] for i in sorted(chosen)], [one for i, one in enumerate(lessons) if i not in chosen]


def _tables(checkpoint: Checkpoint) -> Tables:
    """Of the model, fp32. Raises ``ConfigError`` where they go by other names."""
    names = set(checkpoint.names())
    if not {"model.embed_tokens.weight", "model.norm.weight"} <= names:
        raise ConfigError(f"{checkpoint.path}: no model.embed_tokens and model.norm, which a draft head begins with")
    embedding = checkpoint.tensor("model.embed_tokens.weight").float()
    head = checkpoint.tensor("lm_head.weight").float() if "lm_head.weight" in names else embedding
    return Tables(embedding, checkpoint.tensor("model.norm.weight").float(), head)


def _borrow_mlp(head: Trainable, checkpoint: Checkpoint, layer: int) -> None:
    """The model's last MLP, where there is one of the head's shape."""
    names = set(checkpoint.names())
    with torch.no_grad():
        for name, parameter in head.mlp.named_parameters():
            source = f"model.layers.{layer}.mlp.{name}"
            if source in names and checkpoint.shape(source) == tuple(parameter.shape):
                parameter.copy_(checkpoint.tensor(source).float())
