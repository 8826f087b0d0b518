"""Random engines and random lives, from a seed: what the state machine and the soak have in common."""

from __future__ import annotations

import random
from dataclasses import replace

from sim_rig import EOS, STOP, Rig, RigConfig, full, in_chunks, sliding, state

from headrace.cache.arena import TierSizes
from headrace.cache.manager import CacheOptions
from headrace.core.pooling import Pooling
from headrace.core.request import Request
from headrace.core.retention import USUAL_ASKS, Asks, KvCacheRetentionConfig, asks_of
from headrace.sched.options import SchedulerOptions

LAYERS = (
    lambda window: (full(),),
    lambda window: (full(), sliding(window)),
    lambda window: (sliding(window),) * 3 + (full(),),
    lambda window: (full(),) * 2 + (sliding(window),),
    lambda window: (full(), full(3), sliding(window, 2), sliding(2 * window)),
    lambda window: (sliding(window),),
    lambda window: (in_chunks(window),) * 3 + (full(),),
    lambda window: (in_chunks(window), sliding(window + 9)),
    lambda window: (full(), state()),
    lambda window: (state(1000), state(1000), full()),
    lambda window: (sliding(window), state(), full()),
    lambda window: (state(),),
    # An encoder keeps no past.
    lambda window: (),
)
CAPACITY = ("MAX_UTILIZATION",) * 4 + ("GUARANTEED_NO_EVICT", "STATIC_BATCH")
CHUNKING = ("FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS")
PROPOSERS = ("none", "ngram", "seer", "blind", "worker")


def random_config(rng: random.Random) -> RigConfig:
    """Small limits of every kind: rows below a block, below the batch; an arena that holds little more than one."""
    specs = rng.choice(LAYERS)(rng.choice((1, 7, 32, 33, 50, 70)))
    chunked = rng.random() < 0.8
    max_seq_len = rng.choice((40, 100, 200, 200))
    return RigConfig(
        specs=specs,
        arena_tokens=max_seq_len * rng.choice((2, 2, 3, 5)) // 2,
        scheduler=SchedulerOptions(
            max_batch_size=rng.choice((1, 3, 4, 8)),
            max_num_tokens=rng.choice((1, 3, 8, 40, 100, 100)) if chunked else rng.choice((40, 100)),
            max_seq_len=max_seq_len,
            chunked_prefill=chunked,
            capacity_policy=rng.choice(CAPACITY),
            chunking_policy=rng.choice(CHUNKING),
            max_queue_size=rng.choice((None, None, 6)),
            depth=rng.choice((1, 2, 2, 3)),
        ),
        cache=CacheOptions(block_reuse=rng.random() < 0.85, partial_reuse=rng.random() < 0.8),
        proposer=rng.choice(PROPOSERS),
    )


def random_beams(rng: random.Random, n_slots: int) -> dict[str, object]:
    """Options of beam search; once in a while more beams than there are slots."""
    width = rng.randint(1, min(4, n_slots) + (rng.random() < 0.05))
    options: dict[str, object] = {
        "use_beam_search": True,
        "n": rng.randint(1, width),
        "early_stopping": rng.choice((None, 0, 1, 2)),
        "length_penalty": rng.choice((None, 1.0, -0.5)),
        "beam_search_diversity_rate": rng.choice((None, None, 0.6, -0.3)),
    }
    if rng.random() < 0.3:
        return options | {"beam_width_array": (*(rng.randint(1, width) for _ in range(rng.randint(0, 3))), width)}
    return options | {"best_of": width}


def random_asks(rng: random.Random, n_prompt: int) -> Asks:
    """Of half of the requests nothing; of the others ranges of the prompt, and the rest, for a while or for good."""
    if rng.random() < 0.5:
        return USUAL_ASKS
    borders = sorted({rng.randrange(n_prompt) for _ in range(4)})
    some = [
        {"token_start": first, "token_end": end, "priority": rng.choice((0, 20, 35, 60, 100))}
        | {"duration_ms": rng.choice((None, 5, 60))}
        for first, end in zip(borders[::2], borders[1::2], strict=False)
    ]
    decode = {"decode_retention_priority": rng.choice((0, 35, 80))} if rng.random() < 0.5 else {}
    return asks_of(KvCacheRetentionConfig(token_range_retention_configs=some, **decode), n_prompt)


def with_tiers(config: RigConfig, rng: random.Random) -> RigConfig:
    """With tiers below the arena, where there is something to keep."""
    if not (config.specs and config.cache.block_reuse):
        return config
    host = rng.choice((0, 0, 2, 5, 30))
    disk = rng.choice((0, 5, 50)) if host else 0
    return replace(config, cache=replace(config.cache, tiers=TierSizes(host, disk)))


class FuzzRig(Rig):
    """A rig with a library of prompts that share beginnings, and random acts."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        config = random_config(self.rng)
        tiers = random.Random(seed)
        super().__init__(with_tiers(config, tiers))
        self._other = random.Random(seed + 1)
        if tiers.random() < 0.3:
            self.executor.disk_fails = lambda: tiers.random() < 0.1
        # Short prompts with long outputs outgrow the cache together; long prompts share and are chunked.
        self._outgrows = self.rng.random() < 0.35
        self._library = [[self.rng.randrange(2, 8) for _ in range(200)] for _ in range(2)]
        self.n_steps = 0

    def random_prompt(self) -> list[int]:
        rng = self.rng
        shared = rng.choice(self._library)[: rng.choice((0, 5, 31, 32, 33, 63, 64, 65, 96, rng.randrange(200)))]
        tail = [rng.randrange(2, 8) for _ in range(rng.choice((0, 0, 1, 4, 40)))]
        limit = self.config.scheduler.max_seq_len - 1 if rng.random() < 0.9 else 200
        if self._outgrows:
            limit = min(limit, 36)
        return (shared + tail)[: rng.randint(1, limit) if rng.random() < 0.3 else limit] or [rng.randrange(2, 8)]

    def act_submit(self) -> None:
        rng = self.rng
        if rng.random() < 0.15:
            pooling = Pooling(rng.choice(("last", "mean")))
            self.submit(self.random_prompt(), 1, pooling=pooling, cache_salt=rng.choice((None, None, "other")))
            return
        n = rng.choice((1, 1, 1, 3))
        beams = random_beams(rng, self.config.scheduler.max_batch_size) if rng.random() < 0.08 else {}
        now = self.clock.now()
        prompt = self.random_prompt()
        room = max(1, self.config.scheduler.max_seq_len - len(prompt))
        self.submit(
            prompt,
            None if self._outgrows else rng.choice((1, min(5, room), min(20, room), room, None)),
            **(beams or {"n": n, "temperature": 1.0 if n > 1 else rng.choice((None, 1.0))}),
            logprobs=rng.choice((None, 0)),
            prompt_logprobs=rng.choice((None, None, None, 0)),
            stop_token_ids=None if self._outgrows else rng.choice((None, (STOP,))),
            eos_ids=frozenset() if self._outgrows else rng.choice((frozenset(), frozenset({EOS}))),
            seed=rng.randrange(2),
            priority=rng.choice((0.5, 0.5, 0.9)),
            deadline=rng.choice((None, None, None, now + rng.random() * 0.2)),
            cache_salt=rng.choice((None, None, "other")),
            asks=random_asks(self._other, len(prompt)),
        )

    def act_plan(self) -> None:
        if len(self.in_flight) < self.config.scheduler.depth and self.plan():
            self.n_steps += 1

    def act_apply(self) -> None:
        if self.in_flight:
            self.apply()

    def act_cancel(self) -> None:
        if self.requests:
            self.cancel(self._some_request())

    def act_finish(self) -> None:
        if self.requests:
            request = self._some_request()
            if not request.sampling.use_beam_search:  # nobody sees a beam's text before it has ended
                self.finish(request, self.rng.randrange(request.n))

    def act_wait(self) -> None:
        self.clock.advance(self.rng.random() * 0.05)
        self.ingest()

    def _some_request(self) -> Request:
        live = [request_id for request_id, _ in self.scheduler.live]
        return self.requests[self.rng.choice(live or list(self.requests))]

    def act(self) -> None:
        """One act, mostly steps."""
        acts = (self.act_plan, self.act_apply, self.act_submit, self.act_wait, self.act_cancel, self.act_finish)
        self.rng.choices(acts, (40, 40, 8, 4, 2, 2))[0]()

    def finish_life(self) -> None:
        self.n_steps += self.drain()
        self.check_end()
        options = self.config.scheduler
        counters = self.scheduler.counters()
        # Beams that do not fit together take turns; nobody else is held up by that for ever.
        one_size = len(set(self.manager.pool.per_sector)) == 1 and not any(
            request.sampling.use_beam_search for request in self.requests.values()
        )
        if options.capacity_policy != "MAX_UTILIZATION" and one_size:
            assert counters["preemptions"] == 0
        # Otherwise a copy's source or scattered blocks may leave no way but to start over.
        if one_size and not (self.config.cache.block_reuse and self.config.cache.partial_reuse):
            assert counters["standstills"] == 0
