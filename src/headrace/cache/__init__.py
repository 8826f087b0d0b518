"""Cache logic: specs, groups, the arena, blocks, leases, the prefix index. Numbers only; the worker owns the bytes."""
