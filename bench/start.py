"""How soon a start is done: the import, the header and the tokenizer of the built-in model, and the first token.

    python bench/start.py [--runs 5]

The first token is that of ``headrace generate`` on the built-in model, in seconds from process start. Limits, at the
median on an idle machine: import 0.3 s, GGUF header 0.05 s, first token 4 s. The model is fetched before, if need be.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from headrace.tokenizer.load import load_tokenizer
from headrace.weights.gguf_reader import read_header
from headrace.weights.resolve import resolve_model

LIMITS = {"import headrace": 0.3, "GGUF header": 0.05, "tokenizer": 0.5, "first token": 4.0}


def first_token() -> float:
    """Runs the command once; seconds until the first character is there."""
    command = [str(Path(sys.executable).with_name("headrace")), "generate", "smollm2", "What is the capital of France?"]
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        first = running.stdout.read(1)
        seconds = time.perf_counter() - before
        rest = running.stdout.read()
    if running.returncode or b"Paris" not in first + rest:
        raise SystemExit(f"no answer: exit {running.returncode}, {first + rest!r}")
    return seconds


def imported() -> float:
    """In a fresh interpreter: seconds of ``import headrace``."""
    code = "import time; start = time.perf_counter(); import headrace; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def timed(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    path = resolve_model("smollm2", on_note=print).path
    measures: dict[str, Callable[[], float]] = {
        "import headrace": imported,
        "GGUF header": lambda: timed(lambda: read_header(path)),
        "tokenizer": lambda: timed(lambda: load_tokenizer(path)),
        "first token": first_token,
    }
    late = []
    print("seconds              min  median     max   limit")
    for name, measure in measures.items():
        measure()
        seconds = sorted(measure() for _ in range(runs))
        median = statistics.median(seconds)
        print(f"{name:16} {seconds[0]:7.3f} {median:7.3f} {seconds[-1]:7.3f} {LIMITS[name]:7.2f}")
        late += [name] if median > LIMITS[name] else []
    sys.exit(f"over the limit: {', '.join(late)}" if late else 0)


if __name__ == "__main__":
    main()
