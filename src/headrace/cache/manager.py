"""The cache as the scheduler sees it: what could be had (``can_*``, ``lookup``), what is done, and the counts.

Everything that gives blocks back goes through this class, and only ``_let_go`` does it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.core.clock import Clock
from headrace.core.errors import IntegrityError
from headrace.core.media import EncodedMedia
from headrace.core.outputs import MissReason
from headrace.core.plan import BLOCK_TOKENS, BlockCopy, BlockUpdate
from headrace.core.retention import DEFAULT_PRIORITY, USUAL_ASKS, Asks

from .arena import NO_TIERS, NULL_BLOCK, ArenaLayout, TierSizes
from .cross import CrossCache
from .groups import CacheGroup
from .hit import Hit, no_hit
from .lease import BlockLease
from .no_index import NoIndex
from .pool import BlockPool
from .prefix_index import Node, PrefixIndex
from .specs import blocks_of
from .tiers import MoveBatch, Tiers

COUNTERS = (
    "blocks_freed_out_of_window",
    "blocks_freed_by_max_attention_window",
    "reused_blocks",
    "missed_blocks",
    "partial_reuse_tokens",
    "reused_media",
    "prioritised_blocks",
)


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What of a cache can be chosen."""

    block_reuse: bool = True
    partial_reuse: bool = True
    """A prefix that ends inside a block is copied, if every group can go on from there."""
    checkpoint_tokens: int = 64
    """Recurrent states are kept for others where a multiple of these tokens ends, and at the end of a sequence."""
    tiers: TierSizes = NO_TIERS
    """Where blocks go that have to make room; it takes block_reuse."""
    min_offload_priority: int = DEFAULT_PRIORITY
    """What is worth less is not kept in the tiers."""
    event_buffer: int = 0
    """Events of the prefix index that are kept until somebody asks; 0: none."""
    narrowed: tuple[int, ...] = ()
    """Groups whose windows were set by hand: they have a count of their own."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a sequence got when it was admitted."""

    lease: BlockLease
    updates: tuple[BlockUpdate, ...]
    copies: tuple[BlockCopy, ...]
    sources: BlockLease | None
    """Holds the blocks that are copied from; let go of when the copying step is applied."""
    encodes: bool
    """The sequence's media are to be encoded into its blocks before it computes."""
    cached_tokens: dict[str, int]
    """Tokens that were not computed, by the tier that they were found in: device, host, disk."""


class CacheManager:
    """Blocks of all groups, and the prefix index over them. No tensors: block ids and token ids only."""

    def __init__(
        self, groups: Sequence[CacheGroup], layout: ArenaLayout, options: CacheOptions, clock: Clock | None = None
    ) -> None:
        """``clock``: what durations of retention go by; None: they never pass."""
        self.layout = layout
        self._specs = [group.spec for group in groups]
        self._n_groups = len(groups)
        of_tokens = [group for group in groups if group.spec.of_tokens]
        self._n_token_groups = len(of_tokens)
        """They stand before the others."""
        self._windowed = [group.index for group in groups if not group.spec.keeps_all]
        self._narrowed = options.narrowed
        self._checkpoint_blocks = options.checkpoint_tokens // BLOCK_TOKENS
        self._partial_reuse = options.partial_reuse and all(spec.resumes_inside for spec in self._specs)
        self.pool = BlockPool(layout)
        self.counters: Counter[str] = Counter(
            blocks_freed_out_of_window=0,
            blocks_freed_by_max_attention_window=0,
            reused_blocks=0,
            missed_blocks=0,
            partial_reuse_tokens=0,
            reused_media=0,
        )
        self.tiers = Tiers(
            layout,
            options.tiers,
            lambda kept: self.index.lost(kept),
            lambda kept: self.index.moved(kept),
            self.counters,
        )
        self.index = (
            PrefixIndex(
                of_tokens,
                self.pool,
                self.tiers,
                self._partial_reuse,
                counters=self.counters,
                clock=clock,
                min_offload_priority=options.min_offload_priority,
                event_buffer=options.event_buffer,
            )
            if options.block_reuse and groups
            else NoIndex(self._n_token_groups)
        )
        others = [group.index for group in groups if not group.spec.of_tokens]
        self.cross = CrossCache(others, self._n_groups, self.pool, keeps=options.block_reuse)
        self._leases: set[BlockLease] = set()
        self.n_given_back = 0
        """Times that blocks were let go: what did not fit fits no better until this has moved."""
        self.n_limbo = 0
        """Leases whose sequence has let go, held by steps in flight: their blocks come back soon."""

    # Asking: nothing changes.

    def lookup(
        self,
        identity: str | None,
        tokens: Sequence[int],
        limit: int,
        media: EncodedMedia | None = None,
        *,
        with_disk: bool = False,
    ) -> Hit:
        """The longest reusable prefix of ``tokens``, at most ``limit`` tokens long, under ``identity`` (the salt); and
        what is there of ``media``.

        ``with_disk``: with what would have to be fetched first, if ``must_fetch`` says so.
        """
        cross = self.cross.lookup(identity, media)
        if limit <= 0:
            miss = MissReason.PROMPT_LOGPROBS if len(tokens) > 1 else None
            return replace(no_hit(identity, self._n_token_groups, miss), cross=cross)
        if not self._partial_reuse:
            limit -= limit % BLOCK_TOKENS
        hit = self.index.lookup(identity, tokens, limit, with_disk=with_disk)
        return hit if cross is None else replace(hit, cross=cross)

    @staticmethod
    def must_fetch(hit: Hit) -> bool:
        """True if some of it is on disk, or on its way from there: it cannot be placed yet."""
        return not all(kept.is_ready for kept in hit.below())

    def can_place(self, hit: Hit, end: int) -> bool:
        """True if a sequence could get the blocks of ``hit`` and new ones up to position ``end``."""
        new = self._with_media([blocks_of(end) - hit.n_whole + n_below for n_below in hit.n_below], hit)
        return self.pool.fits(new) and self.pool.fits(new, self._to_be_pinned(hit))

    def furthest_place(self, hit: Hit, end: int) -> int:
        """The last position, up to ``end``, for which ``can_place``; ``hit.length`` if there is none."""
        fits, fails = hit.n_whole, blocks_of(end) + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self.can_place(hit, middle * BLOCK_TOKENS) else (fits, middle)
        return max(hit.length, min(end, fits * BLOCK_TOKENS))

    def can_hold(self, hit: Hit, length: int, rows: int) -> bool:
        """True if ``length`` tokens could be computed now, at most ``rows`` at a time, if nobody else took more."""
        new = [
            max(1, spec.peak_blocks(length, rows) - (hit.n_whole - first)) + n_below
            for spec, first, n_below in zip(self._specs[: self._n_token_groups], hit.first, hit.n_below, strict=True)
        ]
        new = self._with_media(new, hit)
        return self.pool.fits(new) and self.pool.fits(new, self._to_be_pinned(hit))

    def rows_that_fit(self, lease: BlockLease, start: int, rows: int) -> int:
        """How many of ``rows`` rows from position ``start`` on could get blocks now: 0 to ``rows``."""
        return min(
            rows, (lease.n_blocks + self._most_new(blocks_of(start + rows) - lease.n_blocks)) * BLOCK_TOKENS - start
        )

    def _most_new(self, wanted: int) -> int:
        """Most blocks, up to ``wanted``, that every group could get."""
        if wanted <= 0 or self.pool.fits(self._with_media([wanted] * self._n_token_groups)):
            return wanted
        fits, fails = 0, wanted
        while fails - fits > 1:
            middle = (fits + fails) // 2
            new = self._with_media([middle] * self._n_token_groups)
            fits, fails = (middle, fails) if self.pool.fits(new) else (fits, middle)
        return fits

    def _with_media(self, of_tokens: list[int], hit: Hit | None = None) -> list[int]:
        """Blocks of each group: those of tokens, and what is missing of the media of ``hit``."""
        missing = self.cross.missing(None if hit is None else hit.cross)
        return of_tokens + missing[self._n_token_groups :]

    def peak_blocks(self, length: int, rows: int, media: EncodedMedia | None = None) -> list[int]:
        """Most blocks of each group that one sequence holds while ``length`` tokens are computed ``rows`` at a time."""
        wanted = self.cross.wanted(media)
        return [spec.peak_blocks(length, rows) + count for spec, count in zip(self._specs, wanted, strict=True)]

    def fits_empty(self, blocks: Sequence[int]) -> bool:
        """True if an empty cache has room for ``blocks[g]`` blocks of each group."""
        return self.pool.sectors_for(blocks, [0] * self._n_groups) <= self.layout.n_sectors - 1

    def longest_alone(self, limit: int, rows: int, media: EncodedMedia | None = None) -> int:
        """Most tokens, up to ``limit``, that one sequence can compute, ``rows`` at a time, with the cache to itself."""
        fits, fails = 0, limit + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self.fits_empty(self.peak_blocks(middle, rows, media)) else (fits, middle)
        return fits

    def _pinned_by(self, hit: Hit) -> list[tuple[int, int]]:
        blocks = [(group, block) for group, row in enumerate(hit.blocks) for block in row]
        if hit.source is not None:
            blocks.extend(enumerate(hit.source.blocks))
        return [(group, block) for group, block in blocks if block != NULL_BLOCK]

    def _to_be_pinned(self, hit: Hit) -> list[tuple[int, int]]:
        return self._pinned_by(hit) + self.cross.blocks(None if hit.cross is None else hit.cross.entry)

    # Doing.

    def place(self, slot: int, hit: Hit, tokens: Sequence[int], end: int, asks: Asks = USUAL_ASKS) -> Placement:
        """Blocks for a sequence that resumes at ``hit`` and computes up to ``end``. Ask ``can_place`` first, and
        ``must_fetch``. ``asks``: what its blocks are worth."""
        below = hit.below()
        source_below = [] if hit.source is None else [kept for kept in hit.source.kept if kept is not None]
        self.tiers.claim([*below, *source_below])
        for group, block in self._pinned_by(hit):
            self._pin(group, block)
        found = None if hit.cross is None else hit.cross.entry
        if found is not None:
            self.cross.pin(found)
            self.counters["reused_media"] += 1
        sources = None if hit.source is None else self._hold_source(hit.identity, hit.first, hit.source)
        cached_tokens = _by_tier(hit)
        n_new = blocks_of(end) - hit.n_whole
        new = self._take(self._with_media([n_new + n_below for n_below in hit.n_below], hit))
        encodes = hit.cross is not None and found is None
        media = self.cross.enter(hit.cross, new) if hit.cross is not None and found is None else found
        new = new[: self._n_token_groups]
        for kept in source_below:
            self.tiers.onboard(kept, new[kept.group][-n_new])
            self.tiers.release(kept)
        copies = () if hit.source is None else self._copies(hit.source.blocks, [row[-n_new] for row in new])
        held = [deque(self._whole_blocks(hit, group, row, n_new)) for group, row in enumerate(new)]
        lease = self._register(BlockLease(hit.identity, list(hit.first), held, blocks_of(end)))
        lease.node, lease.n_indexed, lease.n_found, lease.media = hit.node, hit.n_whole, hit.n_whole, media
        lease.asks = asks
        self.index.retain(lease)
        self.index.announce(lease, tokens)
        self._count_hit(hit, len(tokens))
        updates = tuple(
            BlockUpdate(slot, group, 0, (NULL_BLOCK,) * hit.first[group] + tuple(row)) for group, row in enumerate(held)
        )
        if media is not None:
            updates += tuple(BlockUpdate(slot, group, 0, row) for group, row in media.blocks.items())
        return Placement(lease, updates, copies, sources, encodes, cached_tokens)

    def _hold_source(self, identity: str | None, first: list[int], source: Node) -> BlockLease:
        blocks = [deque((block,) if block else ()) for block in source.blocks]
        return self._register(BlockLease(identity, list(first), blocks, 1))

    def _whole_blocks(self, hit: Hit, group: int, new: list[int], n_new: int) -> list[int]:
        """All blocks of a group, from ``first`` on: those of the hit, some of them brought back to the first of
        ``new``, and the last ``n_new`` of those."""
        back = iter(new)
        row = []
        for number, block in enumerate(hit.blocks[group], hit.first[group]):
            node = hit.path[number]
            kept = node.kept[group]
            if block or kept is None:
                row.append(block)
                continue
            row.append(next(back))
            self.tiers.onboard(kept, row[-1])
            self.index.adopt(node, group, row[-1])
        return row + new[len(new) - n_new :]

    def _copies(self, sources: Sequence[int], targets: Sequence[int]) -> tuple[BlockCopy, ...]:
        pairs = enumerate(zip(sources, targets, strict=True))
        after = self.tiers.n_moves
        return tuple(BlockCopy(group, src, dst, after=after) for group, (src, dst) in pairs if src != NULL_BLOCK)

    # Tiers.

    def fetch(self, hit: Hit) -> bytes | None:
        """Starts to bring what of ``hit`` is on disk to the host. What to wait for (see ``take_resolved``), or None if
        there is no room for any of it now."""
        self.index.expire()
        # Should there not be room for all, what has come is a beginning in every group.
        below = sorted(hit.below(), key=lambda kept: kept.node.depth)
        ready = [kept for kept in below if kept.is_ready]
        self.tiers.claim(ready)
        arrival = self.tiers.fetch([kept for kept in below if not kept.is_ready])
        for kept in reversed(ready):
            self.tiers.release(kept)
        return arrival

    def take_moves(self) -> MoveBatch:
        """The moves that have come up while a step was planned: it takes them along. ``settle`` them when it lands."""
        self.index.events.flush()
        return self.tiers.take()

    def settle(self, batch: MoveBatch, failed: Sequence[int]) -> None:
        """A step has landed; ``failed``: places of those of its moves that were not made."""
        if batch.watched:
            self.tiers.settle(batch, failed)
            self.n_given_back += 1

    def take_resolved(self) -> list[bytes]:
        """What need not be waited for any more, since the last call: blocks of others, and fetches."""
        return self.index.take_resolved() + self.tiers.take_landed()

    def take_events(self) -> list[dict[str, Any]]:
        """What has happened in the prefix index since the last call. Raises ``RequestError`` if nobody keeps it."""
        self.index.expire()
        return self.index.events.drain()

    def fork(self, slot: int, parent: BlockLease, computed: int) -> Placement | None:
        """Blocks for a sequence that goes on where ``parent``'s is, ``computed`` tokens on: it shares those that are
        written and has a copy of the one that is not full. None if there is no memory for the copy."""
        n_whole, has_tail = divmod(computed, BLOCK_TOKENS)
        count = self._with_media([int(has_tail > 0)] * self._n_token_groups)
        if not self.pool.fits(count):
            return None
        parent.n_shared = max(parent.n_shared, n_whole)
        new = self._take(count)[: self._n_token_groups]
        held = []
        for group, row in enumerate(new):
            shared = list(parent.blocks[group])[: max(0, n_whole - parent.first[group])]
            for block in shared:
                self._pin(group, block)
            held.append(deque(shared + row))
        lease = self._register(BlockLease(parent.identity, list(parent.first), held, blocks_of(computed)))
        lease.node, lease.n_indexed = parent.node, parent.n_indexed
        lease.n_shared = lease.n_found = n_whole
        lease.has_twins, lease.media, lease.asks = parent.has_twins, parent.media, parent.asks
        updates = tuple(
            BlockUpdate(slot, group, 0, (NULL_BLOCK,) * lease.first[group] + tuple(row))
            for group, row in enumerate(held)
        )
        copies = tuple(
            BlockCopy(group, parent.block_at(group, n_whole), block, from_running=True, after=self.tiers.n_moves)
            for group, row in enumerate(new)
            for block in row
        )
        if lease.media is not None:
            self.cross.pin(lease.media)
            updates += tuple(BlockUpdate(slot, group, 0, row) for group, row in lease.media.blocks.items())
        return Placement(lease, updates, copies, None, encodes=False, cached_tokens={})

    def grow(self, slot: int, lease: BlockLease, end: int) -> list[BlockUpdate]:
        """Blocks up to position ``end``. Ask ``rows_that_fit`` first."""
        count = blocks_of(end) - lease.n_blocks
        updates = []
        taken = self._take(self._with_media([count] * self._n_token_groups))
        for group, row in enumerate(taken[: self._n_token_groups]):
            lease.blocks[group].extend(row)
            updates.append(BlockUpdate(slot, group, lease.n_blocks, tuple(row)))
        lease.n_blocks += count
        return updates

    def commit(self, lease: BlockLease, tokens: Sequence[int], computed: int) -> None:
        """``computed`` tokens are now written: whole blocks enter the index, and what is out of a window is let go.

        Steps in flight start at ``computed`` or later, so none of them reads what is let go here.
        """
        n_whole = computed // BLOCK_TOKENS
        if n_whole > lease.n_indexed:
            self.index.withdraw(lease)
            self.index.extend(lease, tokens, n_whole)
            if not lease.retired:
                self.index.announce(lease, tokens)
        for group in self._windowed:
            needed = self._specs[group].needed_from(computed) // BLOCK_TOKENS
            if needed > lease.first[group]:
                self._shift_window(lease, group, needed)

    def _shift_window(self, lease: BlockLease, group: int, needed: int) -> None:
        self.index.next_use()
        self.n_given_back += 1
        if group in self._narrowed:
            self.counters["blocks_freed_by_max_attention_window"] += needed - lease.first[group]
        is_checkpoint = not self._specs[group].resumes_inside
        while lease.first[group] < needed:
            # The newest is where the next turn of a conversation goes on: worth as much as the keys before it.
            number, block = lease.first[group], lease.blocks[group].popleft()
            newest = is_checkpoint and number + 1 == needed
            self._unpin(group, block, stale=not newest)
            if is_checkpoint:
                self._thin(lease, group, number, block)
            lease.first[group] += 1
            self.counters["blocks_freed_out_of_window"] += 1

    def _thin(self, lease: BlockLease, group: int, number: int, block: int) -> None:
        """The sequence has gone past another checkpoint of its own: the one before it goes, but for every so many."""
        before = lease.passed.get(group)
        if before is not None and (before[0] + 1) % self._checkpoint_blocks:
            self.index.thin(lease.node, group, *before)
        if number >= lease.n_found:
            lease.passed[group] = (number, block)

    def drop(self, lease: BlockLease) -> None:
        """A step that held the lease (see ``BlockLease.hold``) has been applied."""
        lease.holders -= 1
        if lease.holders == 0:
            if lease.retired:
                self.n_limbo -= 1
            self._let_go(lease)

    def retire(self, lease: BlockLease) -> None:
        """The sequence lets go, for good; steps in flight may still hold. Nobody need wait for its next block."""
        if lease.retired:
            raise IntegrityError("a sequence lets go of its blocks twice")
        lease.retired = True
        self.index.withdraw(lease)
        self.n_limbo += 1
        self.drop(lease)

    def evict_all(self) -> None:
        """Gives up every cached block that nobody pins."""
        for group in range(self._n_groups):
            while self._evict(group):
                pass

    def _let_go(self, lease: BlockLease) -> None:
        """The one place where a lease's blocks are given back."""
        self._leases.remove(lease)
        self.n_given_back += 1
        self.index.next_use()
        self.index.retain(lease)
        for group, row in enumerate(lease.blocks):
            for block in row:
                self._unpin(group, block)
        if lease.media is not None:
            self.cross.unpin(lease.media, self.index.now)
        if lease.has_twins:
            self.index.touch(lease.node)

    def _register(self, lease: BlockLease) -> BlockLease:
        self._leases.add(lease)
        return lease

    def _pin(self, group: int, block: int) -> None:
        if not self.pool.pins[group][block]:
            self.index.busy(group, block)
        self.pool.pin(group, block)

    def _unpin(self, group: int, block: int, *, stale: bool = False) -> None:
        if self.pool.unpin(group, block):
            self.index.idle(group, block, stale=stale)

    def _take(self, wanted: list[int]) -> list[list[int]]:
        """``wanted[g]`` blocks of each group, giving up cached ones as needed; ``pool.fits(wanted)`` has said yes."""
        taken: list[list[int]] = [[] for _ in wanted]
        while True:
            for group, row in enumerate(taken):
                while wanted[group] and self._may_take(group, wanted):
                    row.append(self.pool.take(group))
                    wanted[group] -= 1
            short = next((group for group, count in enumerate(wanted) if count), None)
            if short is None:
                return taken
            if not self._evict(short):
                raise IntegrityError(f"{wanted} blocks short although they were promised")

    def _evict(self, group: int) -> bool:
        """Gives up what was used longest ago: text, of the group itself rather than of others, or encoded media. False
        if there is nothing."""
        media, text = self.cross.oldest, self.index.oldest
        if media is not None and (text is None or media < text):
            return self.cross.evict()
        return self.index.evict(group) or self.cross.evict()

    def _may_take(self, group: int, wanted: list[int]) -> bool:
        """True if a block is free, and taking it leaves enough sectors for all that is still wanted."""
        pool = self.pool
        if pool.has_free_beside_pinned(group):
            return True
        if not pool.has_free(group):
            return False
        loose = list(pool.loose)
        loose[group] += pool.per_sector[group]
        return pool.sectors_for(wanted, loose) <= pool.n_open - 1

    def _count_hit(self, hit: Hit, n_tokens: int) -> None:
        self.counters["reused_blocks"] += hit.n_whole
        self.counters["missed_blocks"] += n_tokens // BLOCK_TOKENS - hit.n_whole
        self.counters["partial_reuse_tokens"] += hit.partial_tokens

    # Counts and checks.

    def stats(self) -> dict[str, int | float]:
        """TensorRT-LLM's ``kvCacheStats``. Blocks are counted in sectors, which with one group are the same thing."""
        reused, missed = self.counters["reused_blocks"], self.counters["missed_blocks"]
        most = self.layout.n_sectors - 1
        return {
            "maxNumBlocks": most,
            "freeNumBlocks": self.pool.n_open,
            "usedNumBlocks": most - self.pool.n_open,
            "tokensPerBlock": BLOCK_TOKENS,
            "allocTotalBlocks": self.pool.n_taken + reused * self._n_groups,
            "allocNewBlocks": self.pool.n_taken,
            "reusedBlocks": reused,
            "missedBlocks": missed,
            "cacheHitRate": reused / (reused + missed) if reused + missed else 0.0,
            **self.tiers.stats(),
        }

    @property
    def n_leases(self) -> int:
        """Leases that hold blocks: zero when nothing runs."""
        return len(self._leases)

    def check_integrity(self) -> None:
        """Raises ``IntegrityError`` unless every pin belongs to a lease and all counts and lists agree. Any time."""
        pins = [[0] * len(row) for row in self.pool.pins]
        for lease in self._leases:
            if lease.holders <= 0:
                raise IntegrityError("a lease without holders still has its blocks")
            for group, row in enumerate(lease.blocks):
                if len(set(row)) != len(row) or NULL_BLOCK in row:
                    raise IntegrityError(f"a lease has a block of group {group} twice, or the null block: {list(row)}")
                for block in row:
                    pins[group][block] += 1
            for group, block in self.cross.blocks(lease.media):
                pins[group][block] += 1
        if pins != self.pool.pins:
            raise IntegrityError("the pins of the blocks are not those of the leases")
        if sum(lease.retired for lease in self._leases) != self.n_limbo:
            raise IntegrityError(f"{self.n_limbo} leases counted as held by steps alone")
        self._check_hands()
        self.pool.check()
        self.index.check()
        self.cross.check()

    def _check_hands(self) -> None:
        """A block that is not in the index is one sequence's own: two pins would be two writers. Beams share what is
        written."""
        shared: Counter[tuple[int, int]] = Counter()
        for lease in self._leases:
            shared.update(self.cross.blocks(lease.media))
            for group, row in enumerate(lease.blocks):
                shared.update((group, block) for block in list(row)[: max(0, lease.n_shared - lease.first[group])])
        for group, pins in enumerate(self.pool.pins):
            cached = self.pool.cached[group]
            for block, count in enumerate(pins):
                if count > 1 and not cached[block] and shared[group, block] < count:
                    raise IntegrityError(f"block {block} of group {group} is in {count} hands and not in the index")


def _by_tier(hit: Hit) -> dict[str, int]:
    """Tokens of a hit by the lowest tier that a block of theirs is in."""
    tiers = ["device"] * (hit.n_whole + 1)
    for number, node in enumerate(hit.path):
        for group, first in enumerate(hit.first):
            kept = node.kept[group]
            if kept is not None and number >= first and tiers[number] != "disk":
                tiers[number] = "disk" if kept.from_disk else "host"
    if hit.source is not None and any(hit.source.kept):
        tiers[-1] = "disk" if any(kept is not None and kept.from_disk for kept in hit.source.kept) else "host"
    found = dict.fromkeys(("device", "host", "disk"), 0)
    for number, tier in enumerate(tiers):
        found[tier] += BLOCK_TOKENS if number < hit.n_whole else hit.partial_tokens
    return found
