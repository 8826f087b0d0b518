"""Trains a draft head on lessons, and measures it on some that it has not seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from headrace.core.clock import Clock

from .eagle3 import TrainableHead
from .lessons import Lesson
from .mtp import TrainableMtp

Trainable = TrainableHead | TrainableMtp


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how fast."""

    n_steps: int = 4
    """Of a chain: as many drafts as the head will be asked for."""
    short_share: float = 0.5
    """Share of the time in which chains have two steps only: most of what a head learns is in those."""
    epochs: int = 4
    seconds: float = 3000.0
    """Training ends after this time at the latest; the learning rate falls accordingly."""
    batch: int = 4
    rate: float = 8e-4
    decay: float = 0.8
    """What a guess weighs against the one before it: it counts only if that was right."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training is."""

    share: float
    """Of the whole, 0 to 1."""
    loss: float
    """Mean over the last batches."""


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """The tokens that a head can guess."""

    ids: torch.Tensor
    """[draft_vocab] int64, rising: their ids in the model's vocabulary."""
    draft_of: torch.Tensor
    """[vocab] int64: id in the draft vocabulary, -1 outside it."""

    @property
    def offsets(self) -> torch.Tensor:
        """``d2t`` of the public layout: token id minus draft id."""
        return self.ids - torch.arange(len(self.ids))


def whole_vocabulary(size: int) -> DraftVocabulary:
    """All tokens of the model."""
    return DraftVocabulary(torch.arange(size), torch.arange(size))


def choose_vocabulary(lessons: Sequence[Lesson], size: int, vocab_size: int) -> DraftVocabulary:
    """The ``size`` tokens that the model gives most of its probability to, over all answers."""
    mass = torch.zeros(vocab_size, dtype=torch.float64)
    for lesson in lessons:
        ids, probs = lesson.top_ids[lesson.n_prompt - 1 :], lesson.top_probs[lesson.n_prompt - 1 :]
        mass.index_add_(0, ids.reshape(-1).long(), probs.reshape(-1).double())
    size = min(size, vocab_size)
    ids = mass.topk(size).indices.sort().values
    draft_of = torch.full((vocab_size,), -1)
    draft_of[ids] = torch.arange(size)
    return DraftVocabulary(ids, draft_of)


@dataclass(frozen=True, slots=True)
class _Batch:
    states: torch.Tensor
    embedded: torch.Tensor
    """[B, S + n_steps - 1, hidden]."""
    goals: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
    """For each step: rows of [B, S] flattened that guess something [R], the draft ids of the model's likeliest tokens
    there [R, TOP] (0 where there is none), their probabilities [R, TOP], and the draft id of the token in the text [R]
    (-1 for none)."""


class Trainer:
    """``embedding``: [vocab, hidden], the model's own."""

    def __init__(
        self,
        head: Trainable,
        embedding: torch.Tensor,
        vocabulary: DraftVocabulary,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._head, self._embedding, self._vocabulary = head, embedding, vocabulary
        self._settings, self._clock = settings, clock

    def train(self, lessons: Sequence[Lesson]) -> Iterator[Progress]:
        """Trains, and says after every batch how it goes."""
        settings, rng = self._settings, random.Random(self._settings.seed)
        # The table of its tokens stays the model's.
        self._head.lm_head.weight.requires_grad_(False)
        matrices = [p for p in self._head.parameters() if p.dim() > 1 and p.requires_grad]
        norms = [p for p in self._head.parameters() if p.dim() == 1]
        # Muon (kellerjordan.github.io/posts/muon): to the same loss in fewer batches than AdamW, and answers are dear.
        optimizers = (
            torch.optim.Muon(matrices, lr=settings.rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(norms, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0),
        )
        groups = [each for optimizer in optimizers for each in optimizer.param_groups]
        total = settings.epochs * -(-len(lessons) // settings.batch)
        begin, done, smooth = self._clock.now(), 0, 0.0
        for _ in range(settings.epochs):
            for group in _grouped(lessons, settings.batch, rng):
                share = max(done / total, (self._clock.now() - begin) / settings.seconds)
                if share >= 1.0:
                    return
                for each in groups:
                    each["lr"] = settings.rate * _rate(share)
                n_steps = min(2, settings.n_steps) if share < settings.short_share else settings.n_steps
                loss = self._loss(self._batch(group, n_steps))
                self._head.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._head.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                done += 1
                smooth += (loss.item() - smooth) / min(done, 20)
                yield Progress(min(1.0, max(done / total, share)), smooth)

    def tokens_per_step(
        self, lessons: Sequence[Lesson], on_lesson: Callable[[int], None] = lambda number: None
    ) -> list[float]:
        """With 0, 1, ... drafts: tokens that a step of the model yields, greedily: answers are walked through as when
        they are generated. A guess counts where it is the token in the text and those before it in its chain were."""
        n_steps = self._settings.n_steps
        steps, tokens = [0] * (n_steps + 1), 0
        for number, lesson in enumerate(lessons, start=1):
            batch = self._batch([lesson], n_steps)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                guesses = self._head(batch.states, batch.embedded, n_steps)
                ok = torch.zeros(n_steps, batch.states.shape[1], dtype=torch.bool)
                for step, (rows, _, _, wanted) in enumerate(batch.goals):
                    guessed = self._head.lm_head(guesses[step].flatten(0, 1)[rows]).argmax(1)
                    ok[step, rows] = guessed == wanted
            places = batch.goals[0][0]
            right = ok.cumprod(0).cumsum(0)[:, places]
            tokens += len(places)
            steps[0] += len(places)
            for n_drafts in range(1, n_steps + 1):
                steps[n_drafts] += _walk(right[n_drafts - 1].tolist())
            on_lesson(number)
        return [tokens / max(1, n) for n in steps]

    def _loss(self, batch: _Batch) -> torch.Tensor:
        settings, losses = self._settings, []
        with torch.autocast("cpu", torch.bfloat16):
            guesses = self._head(batch.states, batch.embedded, len(batch.goals))
            for step, (rows, ids, probs, _) in enumerate(batch.goals):
                known = probs[:, 0] > 0  # as in EAGLE-3: only where the likeliest token can be guessed at all
                logits = self._head.lm_head(guesses[step].flatten(0, 1)[rows[known]]).float()
                goal = probs[known] / probs[known].sum(1, keepdim=True)
                each = (logits.gather(1, ids[known]) * goal).sum(1) - logits.logsumexp(1)
                losses.append(-(settings.decay**step) * each.mean())
        return torch.stack(losses).sum() / sum(settings.decay**step for step in range(len(losses)))

    def _batch(self, lessons: Sequence[Lesson], n_steps: int) -> _Batch:
        # The last position whose state is of use is two tokens before the end.
        length = max(len(one.tokens) for one in lessons) - 2
        states = torch.zeros(len(lessons), length, lessons[0].states.shape[1])
        following = torch.zeros(len(lessons), length + n_steps - 1, dtype=torch.int64)
        for place, one in enumerate(lessons):
            own = min(length, len(one.tokens) - 2)
            states[place, :own] = one.states[:own].float()
            after = one.tokens[1 : 1 + length + n_steps - 1]
            following[place, : len(after)] = after
        goals = [self._goals(lessons, length, step) for step in range(n_steps)]
        return _Batch(states, F.embedding(following, self._embedding), goals)

    def _goals(
        self, lessons: Sequence[Lesson], length: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        draft_of, parts = self._vocabulary.draft_of, []
        for place, one in enumerate(lessons):
            # Position t guesses token t + 2 + step, as the model does at t + 1 + step.
            first = max(0, one.n_prompt - 2 - step)
            last = len(one.tokens) - 2 - step
            if last <= first:
                continue
            at = slice(first + 1 + step, last + 1 + step)
            ids = draft_of[one.top_ids[at].long()]
            probs = one.top_probs[at] * (ids >= 0)
            wanted = draft_of[one.tokens[first + 2 + step : last + 2 + step]]
            parts.append((place * length + torch.arange(first, last), ids.clamp(min=0), probs, wanted))
        rows, ids, probs, wanted = (torch.cat(column) for column in zip(*parts, strict=True))
        return rows, ids, probs, wanted


def _walk(right: Sequence[int]) -> int:
    """Steps through an answer: each goes on behind its right guesses (``right``, by where it begins) and one token."""
    at = steps = 0
    while at < len(right):
        at += 1 + right[at]
        steps += 1
    return steps


def _grouped(lessons: Sequence[Lesson], size: int, rng: random.Random) -> list[list[Lesson]]:
    """All lessons once, those of about one length together: little is padded."""
    order = list(lessons)
    rng.shuffle(order)
    wide, groups = 16 * size, []
    for first in range(0, len(order), wide):
        near = sorted(order[first : first + wide], key=lambda one: len(one.tokens))
        groups += [near[at : at + size] for at in range(0, len(near), size)]
    rng.shuffle(groups)
    return groups


def _rate(share: float) -> float:
    """Of the highest learning rate: up within the first twentieth, then down along half a cosine to a twentieth."""
    if share < 0.05:
        return 0.1 + 0.9 * share / 0.05
    return 0.05 + 0.95 * 0.5 * (1.0 + float(torch.cos(torch.tensor((share - 0.05) / 0.95 * torch.pi))))
