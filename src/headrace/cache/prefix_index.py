"""The prefix index: blocks that are written, found again by the tokens that led to them.

A tree of blocks of 32 tokens, one tree per salt. An entry's key is a chained hash of its parent's key and its tokens; a
match is only believed if parent and tokens are the same as well, so a collision costs a hit and never an answer. An
entry has one block per cache group, or none in groups whose window has moved on. A block may have gone to a tier below
the arena (``tiers``); it still counts, and comes back when it is used.

Every block here that no lease pins can be given up; ``victims`` has the order.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import xxhash

from headrace.core.clock import Clock, VirtualClock
from headrace.core.errors import IntegrityError
from headrace.core.outputs import MissReason
from headrace.core.plan import BLOCK_TOKENS
from headrace.core.retention import DEFAULT_PRIORITY, USUAL_ASKS, Ask

from .events import Events, NoEvents
from .groups import CacheGroup
from .hit import Hit
from .lease import BlockLease
from .pool import BlockPool
from .retention import Retention
from .tiers import Kept, Tiers
from .victims import Rank, Victims

_pack_block = struct.Struct(f"<{BLOCK_TOKENS}q").pack
_EVICTED_KEYS_KEPT = 4096
_NO_BLOCK = 0


def chain_key(parent_key: bytes, tokens: tuple[int, ...]) -> bytes:
    """Key of a block: XXH3-128 of the parent's key and the block's tokens as little-endian 64-bit integers."""
    return xxhash.xxh3_128_digest(parent_key + _pack_block(*tokens))


class Node:
    """One entry: 32 tokens after its parent's, and the blocks that hold them."""

    __slots__ = (
        "alive",
        "blocks",
        "child_tokens",
        "children",
        "depth",
        "expires",
        "idle_since",
        "kept",
        "key",
        "parent",
        "priority",
        "tokens",
    )

    def __init__(self, parent: Node | None, key: bytes, tokens: tuple[int, ...], n_groups: int) -> None:
        self.parent = parent
        self.key = key
        self.tokens = tokens
        self.depth = 0 if parent is None else parent.depth + 1
        """Blocks from the start to the end of this one."""
        self.blocks = [_NO_BLOCK] * n_groups
        self.kept: list[Kept | None] = [None] * n_groups
        """Blocks of groups that have none in the arena, if they are in a tier below."""
        self.idle_since: list[Rank | None] = [None] * n_groups
        """Place among the victims, for each block that nobody pins."""
        self.priority = DEFAULT_PRIORITY
        self.expires: float | None = None
        """Clock reading at which the priority is the usual one again; None: it stays."""
        self.children: list[Node] = []
        self.child_tokens: list[tuple[int, ...]] = []
        """Tokens of the children, sorted: the child that shares the most with a text is a neighbour of its place."""
        self.alive = True


class PrefixIndex:
    """Entries, roots, victims, and who computes which block next. Blocks are counted in the ``BlockPool``."""

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        pool: BlockPool,
        tiers: Tiers,
        partial_reuse: bool,
        key_of: Callable[[bytes, tuple[int, ...]], bytes] = chain_key,
        *,
        counters: Counter[str],
        clock: Clock | None = None,
        min_offload_priority: int = DEFAULT_PRIORITY,
        event_buffer: int = 0,
    ) -> None:
        self._specs = [group.spec for group in groups]
        self._pool = pool
        self._tiers = tiers
        self._partial_reuse = partial_reuse
        self._key_of = key_of
        self._nodes: dict[bytes, Node] = {}
        self._roots: dict[str | None, Node] = {}
        self._node_of: list[dict[int, Node]] = [{} for _ in groups]
        self._victims = Victims(len(groups))
        self.events = (
            NoEvents()
            if not event_buffer
            else Events(event_buffer, (pool.layout.n_sectors - 1, *tiers.n_sectors), self._nodes, self._level_of)
        )
        self.retention = Retention(clock or VirtualClock(), self._victims, tiers, counters, self.events)
        self._min_offload_priority = min_offload_priority
        self._pending: dict[bytes, BlockLease] = {}
        self._resolved: list[bytes] = []
        self._evicted: OrderedDict[bytes, None] = OrderedDict()

    # Looking up. Nothing changes here.

    def lookup(self, identity: str | None, tokens: Sequence[int], limit: int, *, with_disk: bool) -> Hit:
        """The longest prefix of ``tokens``, at most ``limit`` tokens, at which every group can resume.

        ``with_disk``: what is on disk, or on its way from there, counts as well.
        """
        path, runs, key = self._walk(identity, tokens, limit, with_disk)
        root = self._roots.get(identity)
        n_known = len(path)
        for n_whole in range(n_known, -1, -1):
            parent = path[n_whole - 1] if n_whole else root
            partial, source = self._best_child(parent, runs[n_whole], n_whole, tokens, limit)
            if partial or self._can_resume(runs[n_whole], n_whole, n_whole * BLOCK_TOKENS):
                break
        length = n_whole * BLOCK_TOKENS + partial
        first = [spec.needed_from(length) // BLOCK_TOKENS for spec in self._specs]
        blocks = [[node.blocks[g] for node in path[from_:n_whole]] for g, from_ in enumerate(first)]
        awaited = self._awaited(key, n_known * BLOCK_TOKENS, limit)
        miss = self._miss(length, limit, n_whole < n_known, key)
        return Hit(identity, length, n_whole, first, blocks, path[:n_whole], source, parent, awaited, miss)

    def _walk(
        self, identity: str | None, tokens: Sequence[int], limit: int, with_disk: bool
    ) -> tuple[list[Node], list[list[int]], bytes | None]:
        """Entries along ``tokens`` that could be part of a hit; for each length, blocks in a row by group; and the key
        of the first block that is not there (None if the tokens do not fill it)."""
        parent = self._roots.get(identity)
        parent_key = root_key(identity)
        path: list[Node] = []
        runs = [[0] * len(self._specs)]
        for begin in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            block_tokens = tuple(tokens[begin : begin + BLOCK_TOKENS])
            key = self._key_of(parent_key, block_tokens)
            node = self._nodes.get(key)
            if node is None or node.parent is not parent or node.tokens != block_tokens:
                return path, runs, key
            there = _there(node, with_disk)
            if any(spec.keeps_all and not one for spec, one in zip(self._specs, there, strict=True)):
                return path, runs, key
            if begin + BLOCK_TOKENS > limit:
                return path, runs, None
            path.append(node)
            runs.append([run + 1 if one else 0 for run, one in zip(runs[-1], there, strict=True)])
            parent, parent_key = node, key
        return path, runs, None

    def _can_resume(self, runs: list[int], n_whole: int, length: int) -> bool:
        """True if every group has its blocks up to number ``n_whole`` that rows at ``length`` read."""
        return all(
            run >= n_whole - spec.needed_from(length) // BLOCK_TOKENS
            for run, spec in zip(runs, self._specs, strict=True)
        )

    def _best_child(
        self, parent: Node | None, runs: list[int], n_whole: int, tokens: Sequence[int], limit: int
    ) -> tuple[int, Node | None]:
        """(tokens, entry) of the whole child of ``parent`` that shares the most leading tokens, at least one."""
        begin = n_whole * BLOCK_TOKENS
        wanted = tuple(tokens[begin : min(limit, begin + BLOCK_TOKENS - 1)])
        if parent is None or not wanted or not self._partial_reuse:
            return 0, None
        place = bisect_left(parent.child_tokens, wanted)
        best, source = 0, None
        for child in parent.children[max(0, place - 1) : place + 1]:
            shared = _shared(child.tokens, wanted)
            if (
                shared > best
                and all(_there(child, with_disk=False))
                and self._can_resume(runs, n_whole, begin + shared)
            ):
                best, source = shared, child
        return best, source

    def _awaited(self, key: bytes | None, begin: int, limit: int) -> bytes | None:
        """The key if a running sequence computes that block now and some of it could be used."""
        useful = limit >= begin + (1 if self._partial_reuse else BLOCK_TOKENS)
        return key if key is not None and useful and key in self._pending else None

    def _miss(self, length: int, limit: int, window_gone: bool, key: bytes | None) -> MissReason | None:
        if length == limit:
            return None
        if window_gone:
            return MissReason.OUT_OF_WINDOW
        return MissReason.EVICTED if key in self._evicted or key in self._nodes else MissReason.NO_ENTRY

    # Entering.

    def extend(self, lease: BlockLease, tokens: Sequence[int], n_blocks: int) -> None:
        """Enters the lease's blocks up to number ``n_blocks``, which are written and hold ``tokens``."""
        if lease.node is None or not lease.node.alive:
            # The entries before were given up while the lease held blocks of equal content: begin anew.
            lease.node, lease.n_indexed = self._root(lease.identity), 0
        while lease.n_indexed < n_blocks:
            number = lease.n_indexed
            block_tokens = tuple(tokens[number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS])
            node = self._enter(lease.node, block_tokens, lease.asks.of(number))
            if node is None:
                return
            self._fill(node, lease, number)
            lease.node, lease.n_indexed = node, number + 1
        if lease.asks != USUAL_ASKS:
            # Time may have passed for those before.
            self.retain(lease)

    def _root(self, identity: str | None) -> Node:
        root = self._roots.get(identity)
        if root is None:
            root = self._roots[identity] = Node(None, root_key(identity), (), len(self._specs))
        return root

    def _enter(self, parent: Node, tokens: tuple[int, ...], ask: Ask) -> Node | None:
        """The entry, made if need be; None if its key is taken by different tokens."""
        key = self._key_of(parent.key, tokens)
        node = self._nodes.get(key)
        if node is not None:
            if node.parent is not parent or node.tokens != tokens:
                return None
            self.retention.ask(node, ask)
            return node
        node = self._nodes[key] = Node(parent, key, tokens, len(self._specs))
        self.retention.begin(node, ask)
        place = bisect_left(parent.child_tokens, tokens)
        parent.child_tokens.insert(place, tokens)
        parent.children.insert(place, node)
        self._evicted.pop(key, None)
        return node

    def _fill(self, node: Node, lease: BlockLease, number: int) -> None:
        """Gives the entry the lease's blocks. One that is there already stays only if somebody uses it."""
        for group in range(len(self._specs)):
            block, there = lease.block_at(group, number), node.blocks[group]
            if not block or there == block:
                continue
            if there and self._pool.pins[group][there]:
                lease.has_twins = True
                continue
            if there:
                self._forget(node, group)
            self.adopt(node, group, block)

    def adopt(self, node: Node, group: int, block: int) -> None:
        """Gives an entry without a block in the arena a pinned one, which holds its tokens before anybody reads it."""
        kept = node.kept[group]
        if kept is not None:
            node.kept[group] = None
            self._tiers.discard(kept)
        self._pool.keep(group, block)
        node.blocks[group] = block
        self._node_of[group][block] = node
        self.events.note(node)

    # Who computes what.

    def announce(self, lease: BlockLease, tokens: Sequence[int]) -> None:
        """The block that the lease's sequence computes next may be waited for, if its tokens are all known."""
        begin = lease.n_indexed * BLOCK_TOKENS
        if len(tokens) < begin + BLOCK_TOKENS:
            return
        parent_key = root_key(lease.identity) if lease.node is None else lease.node.key
        key = self._key_of(parent_key, tuple(tokens[begin : begin + BLOCK_TOKENS]))
        if self._pending.setdefault(key, lease) is lease:
            lease.pending = key

    def withdraw(self, lease: BlockLease) -> None:
        """Nobody need wait for the lease's next block any more: it is here, or will not come."""
        if lease.pending is not None:
            del self._pending[lease.pending]
            self._resolved.append(lease.pending)
            lease.pending = None

    def take_resolved(self) -> list[bytes]:
        """Keys withdrawn since the last call."""
        resolved, self._resolved = self._resolved, []
        return resolved

    # What is kept how long.

    def retain(self, lease: BlockLease) -> None:
        """What the lease's sequence asks for its blocks counts from now on."""
        if lease.asks == USUAL_ASKS and not self.retention.is_used:
            return
        node = lease.node
        while node is not None and node.parent is not None:
            if node.alive:
                self.retention.ask(node, lease.asks.of(node.depth - 1))
            node = node.parent

    def expire(self) -> None:
        """What was asked for a while is forgotten when that is over."""
        self.retention.expire()

    # Pins come and go.

    def busy(self, group: int, block: int) -> None:
        """Somebody pins a block of the index that nobody pinned before."""
        self._victims.remove(self._node_of[group][block], group)

    def idle(self, group: int, block: int, *, stale: bool = False) -> None:
        """Nobody pins the block any more. ``stale``: because it fell out of a window."""
        self._victims.add(self._node_of[group][block], group, stale=stale)

    def next_use(self) -> None:
        """Blocks that become idle from now on were used later than those before."""
        self._victims.tick += 1

    @property
    def now(self) -> int:
        """Counts uses."""
        return self._victims.tick

    @property
    def oldest(self) -> int | None:
        """See ``Victims.oldest``."""
        self.expire()
        return self._victims.oldest

    def touch(self, node: Node | None) -> None:
        """The idle blocks on the way to ``node`` count as used now."""
        while node is not None:
            self._victims.touch(node)
            node = node.parent

    # Giving up.

    def evict(self, group: int) -> bool:
        """Gives up one idle block, of the group itself rather than of others. False if there is none."""
        self.expire()
        victim = self._victims.first(group)
        if victim is None:
            return False
        self._give_up(*victim)
        return True

    def thin(self, node: Node | None, group: int, number: int, block: int) -> None:
        """Gives up ``block`` of ``group``, number ``number`` on the way to ``node``, if it is there and nobody pins it.

        Only for groups of which a prefix needs no more than the last block.
        """
        while node is not None and node.depth > number + 1:
            node = node.parent
        if node is not None and node.blocks[group] == block and node.idle_since[group] is not None:
            self._forget(node, group)
            self._prune(node)

    def _give_up(self, node: Node, group: int) -> None:
        rank = node.idle_since[group]
        # What fell out of a window would be read by a sequence that goes back behind it only.
        is_worth_it = rank is not None and rank.is_fresh and node.priority >= self._min_offload_priority
        kept = self._tiers.offload(node, group, node.blocks[group]) if is_worth_it else None
        node.kept[group] = kept
        self._forget(node, group)
        if kept is None:
            if self._specs[group].keeps_all:
                # Without this block no prefix through the entry is whole: the other groups' are worth nothing.
                for other, its_rank in enumerate(node.idle_since):
                    if its_rank is not None:
                        self._forget(node, other)
            self._gone(node)

    def lost(self, kept: Kept) -> None:
        """A tier below has given up a block that had no other place."""
        kept.node.kept[kept.group] = None
        self.events.note(kept.node)
        self._gone(kept.node)

    def moved(self, kept: Kept) -> None:
        """It has gone from one tier to another, or has arrived there."""
        self.events.note(kept.node)

    def _level_of(self, node: Node) -> int | None:
        """The lowest tier that a block of the entry is in: 0, 1, 2 for arena, host and disk. None if no prefix can go
        through it."""
        level = None
        for spec, block, kept in zip(self._specs, node.blocks, node.kept, strict=True):
            if block == _NO_BLOCK and kept is None:
                if spec.keeps_all:
                    return None
                continue
            level = max(level or 0, 0 if kept is None else 1 if kept.is_ready else 2)
        return level

    def _gone(self, node: Node) -> None:
        """A block of the entry is nowhere any more."""
        self._evicted[node.key] = None
        if len(self._evicted) > _EVICTED_KEYS_KEPT:
            self._evicted.popitem(last=False)
        self._prune(node)

    def _forget(self, node: Node, group: int) -> None:
        block = node.blocks[group]
        node.blocks[group] = _NO_BLOCK
        self._victims.remove(node, group)
        self.events.note(node)
        del self._node_of[group][block]
        self._pool.forget(group, block)

    def _prune(self, node: Node) -> None:
        """Takes out entries that have neither blocks nor children, from ``node`` up."""
        while not (node.children or any(node.blocks) or any(node.kept)):
            node.alive = False
            self.retention.end(node)
            parent = node.parent
            if parent is None:
                self._roots = {identity: root for identity, root in self._roots.items() if root is not node}
                return
            place = bisect_left(parent.child_tokens, node.tokens)
            del parent.child_tokens[place], parent.children[place]
            del self._nodes[node.key]
            node = parent

    # Checking.

    @property
    def n_entries(self) -> int:
        return len(self._nodes)

    def check(self) -> None:
        """Raises ``IntegrityError`` if entries, blocks, victims, pool and tiers do not agree with one another."""
        self._tiers.check(self._nodes.values())
        seen = [0] * len(self._specs)
        queued = [self._victims.queued(group) for group in range(len(self._specs))]
        for key, node in self._nodes.items():
            self._check_node(key, node)
            for group, block in enumerate(node.blocks):
                if not block:
                    continue
                if node.kept[group] is not None:
                    raise IntegrityError(f"block {block} of group {group} is in two tiers")
                seen[group] += 1
                pinned = self._pool.pins[group][block] > 0
                if not self._pool.cached[group][block] or self._node_of[group].get(block) is not node:
                    raise IntegrityError(f"block {block} of group {group} is in the index but not marked as cached")
                if pinned == (id(node) in queued[group]):
                    raise IntegrityError(
                        f"block {block} of group {group}: pinned {pinned}, but {'' if pinned else 'not '}a victim"
                    )
        marked = [sum(marks) for marks in self._pool.cached[: len(self._specs)]]
        if seen != marked or seen != [len(nodes) for nodes in self._node_of]:
            raise IntegrityError(f"blocks in the index {seen}, marked as cached {marked}")
        for key, lease in self._pending.items():
            if lease.pending != key or lease.retired:
                raise IntegrityError("a block is announced by a sequence that will not compute it")

    def _check_node(self, key: bytes, node: Node) -> None:
        parent = node.parent
        if parent is None or not node.alive or not parent.alive or node.key != key:
            raise IntegrityError(f"entry of depth {node.depth} hangs below one that is gone")
        place = bisect_left(parent.child_tokens, node.tokens)
        if parent.children[place : place + 1] != [node]:
            raise IntegrityError(f"entry of depth {node.depth} is not in its place among its parent's children")
        if not (node.children or any(node.blocks) or any(node.kept)):
            raise IntegrityError(f"entry of depth {node.depth} has neither blocks nor children")
        if parent.parent is not None and parent.priority < node.priority:
            raise IntegrityError(f"entry of depth {node.depth} is worth more than the one before it")


def _there(node: Node, with_disk: bool) -> list[bool]:
    """By group: whether the entry's block is in the arena, or can come back."""
    return [
        block != _NO_BLOCK or (kept is not None and (with_disk or kept.is_ready))
        for block, kept in zip(node.blocks, node.kept, strict=True)
    ]


def root_key(identity: str | None) -> bytes:
    """Key that the chains of one salt begin with."""
    return xxhash.xxh3_128_digest(b"" if identity is None else b"salt:" + identity.encode())


def _shared(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Leading tokens that two texts share."""
    count = 0
    for mine, yours in zip(left, right, strict=False):
        if mine != yours:
            break
        count += 1
    return count
