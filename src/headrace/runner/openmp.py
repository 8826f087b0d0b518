"""How OpenMP's threads wait. Imported before torch, which reads it when it is first imported."""

from __future__ import annotations

import os

# By default they wait for one another in a busy loop; with one other process on two cores that costs twenty times the
# speed (measured: 0.6, not 16 tokens/s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
