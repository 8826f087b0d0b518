"""Writes ``docs/support-matrix.md`` out of the capability table and the record of what has run (``record.py``).

Run `make matrix`; with ``--check`` it changes nothing and fails when the page is out of date.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.core.features import FEATURES, LACKS, absent_without, feature
from headrace.eval import tiny
from headrace.eval.tiny_variants import LABELLED
from headrace.models.registry import ARCHITECTURES
from pairs import encoding, few_bits, kinds, record
from pairs.cases import ENCODE_ONLY, FAMILIES, NAMES, PAIRS, QUANTISED, Case, all_cases, names_on, variant_of

PAGE = record.ROOT / "docs" / "support-matrix.md"
TEST_FILE, TEST_NAME = "../tests/pairs/test_pairs.py", "test_equals_the_plain_run"
ENCODING = "../tests/pairs/test_encoding.py"
FEW_BITS = "../tests/pairs/test_few_bits.py"
HEAD = f"""# Support matrix

What has been seen to work, by test. A feature works on a model, or beside another one, when all requests give what they
give one at a time with nothing turned on: the same tokens, texts and ends, and the same bits of logprobs, logits and
embeddings; and when a counter of `get_stats` says that the feature acted.

Written by `make matrix` out of the capability table (`headrace features`) and of `tests/pairs/record.json`: what came
of the cases when they last ran; the runs are listed at the end. The title of a cell's link is the id of a case in
[`{TEST_NAME}`]({TEST_FILE}), or, for what only encodes, in
[`test_encodes_as_alone`]({ENCODING}), or, for forms of weights, in [`test_few_bits.py`]({FEW_BITS}):

```
pytest "tests/pairs/test_pairs.py::{TEST_NAME}[batching+kv_reuse-llama-greedy]"
```

- **Yes**: all cases that the cell asks for have run, and have passed.
- **No**: it cannot be, for the reason in the title of the link and under *Why not*.
- **2 of 8**: so many of the cases that the cell asks for have run, and passed. **not run**: none has.
- **fails**: a case has failed; the title says which.
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell is about: the ids of the cases that it asks for, and of others that say something of it."""

    asked: tuple[str, ...]
    others: tuple[str, ...] = ()
    file: str = TEST_FILE

    def show(self, outcomes: Mapping[str, str]) -> str:
        """As Markdown. ``outcomes``: by id of a case."""
        failed = [name for name in (*self.asked, *self.others) if outcomes.get(name) == "failed"]
        if failed:
            return _link("**fails**", self.file, failed[0])
        passed = [name for name in self.asked if outcomes.get(name) == "passed"]
        if not passed:
            return "**not run**"
        said = "Yes" if len(passed) == len(self.asked) else f"**{len(passed)} of {len(self.asked)}**"
        return _link(said, self.file, passed[0])


def _link(text: str, to: str, title: str) -> str:
    return f'[{text}]({to} "{title}")'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def families_of(architecture: str) -> list[str]:
    """Families of the pairs whose model is of that architecture; those with numbers of few bits come last."""
    return [name for name in (*FAMILIES, *QUANTISED) if tiny.architecture(variant_of(name)) == architecture]


def architecture_rows(outcomes: Mapping[str, str]) -> list[list[str]]:
    """Architecture x feature."""
    rows = []
    for architecture, module in ARCHITECTURES.items():
        if module in ENCODE_ONLY:
            cells = [_encoder_cell(name, architecture, outcomes) for name in NAMES]
            at_once = ""
        else:
            families = families_of(architecture)
            cells = [_architecture_cell(name, families, outcomes) for name in NAMES]
            at_once = Cell(tuple(f"everything-{family}" for family in families)).show(outcomes)
        rows.append([f"`{architecture}`", *cells, at_once])
    return rows


def _architecture_cell(name: str, families: list[str], outcomes: Mapping[str, str]) -> str:
    can = [family for family in families if name in names_on(family)]
    if families and not can:
        return _link("No", "#why-not", feature(name).not_with_states or "")
    return Cell(tuple(f"{name}-{family}" for family in can)).show(outcomes)


def _encoder_cell(name: str, architecture: str, outcomes: Mapping[str, str]) -> str:
    families = [family for family in LABELLED if tiny.architecture(family) == architecture]
    absent = absent_without(*encoding.lacking(families[0])) if families else {}
    if name in absent:
        return _link("No", "#why-not", absent[name])
    return Cell(tuple(f"{name}-{family}" for family in families), file=ENCODING).show(outcomes)


def form_rows(outcomes: Mapping[str, str]) -> list[list[str]]:
    """Form of weights x feature."""
    every = [case for level in few_bits.LEVELS for case in few_bits.cases(level, 0)]
    asked: dict[tuple[str, str], list[str]] = {}
    for case in every:
        name = case.names[0] if len(case.names) == 1 else ""
        asked.setdefault((few_bits.families()[case.family][0], name), []).append(case.id)
    rows = []
    for form, kept in few_bits.FORMS.items():
        can = names_on(kept.variant)
        cells = [
            Cell(tuple(asked[form, name]), file=FEW_BITS).show(outcomes)
            if name in can
            else _link("No", "#why-not", feature(name).not_with_states or "")
            for name in NAMES
        ]
        rows.append([f"`{form}`", *cells, Cell(tuple(asked[form, ""]), file=FEW_BITS).show(outcomes)])
    return rows


def pair_rows(outcomes: Mapping[str, str]) -> list[list[str]]:
    """Feature x feature, the lower triangle."""
    cases: dict[tuple[str, ...], list[Case]] = {}
    for case in (*kinds.cases(0), *all_cases(0)):
        cases.setdefault(case.names, []).append(case)
    rows = []
    for place, one in enumerate(NAMES):
        cells = [_pair_cell((other, one), cases, outcomes) for other in NAMES[:place]]
        rows.append([f"`{one}`", *cells, *[""] * (len(NAMES) - place)])
    return rows


def _pair_cell(pair: tuple[str, str], cases: Mapping[tuple[str, ...], list[Case]], outcomes: Mapping[str, str]) -> str:
    if pair not in PAIRS:
        return _link("No", "#why-not", reason_against(pair))
    asked = tuple(case.id for case in cases[pair] if case.how)
    return Cell(asked, tuple(case.id for case in cases[pair] if not case.how)).show(outcomes)


def reason_against(pair: tuple[str, str]) -> str:
    """Why the table excludes one of a pair by the other."""
    return next(
        reason
        for one, other in itertools.permutations(pair)
        for name, reason in (feature(one).excludes or {}).items()
        if name == other
    )


def reasons() -> list[str]:
    """Every No."""
    lines = [
        f"- `{row.name}` on a model with recurrent states: {row.not_with_states}."
        for row in FEATURES
        if row.not_with_states
    ]
    for what in LACKS:
        names = ", ".join(f"`{row.name}`" for row in FEATURES if row.acts_on == what)
        lines.append(f"- {names}: {LACKS[what]}.")
    refused = [pair for pair in itertools.combinations(NAMES, 2) if pair not in PAIRS]
    lines += [f"- `{pair[0]}` with `{pair[1]}`: {reason_against(pair)}." for pair in refused]
    drawing, searching = (
        ", ".join(f"`{name}`" for name in sorted(names)) for names in (kinds.DRAWING, kinds.SEARCHING)
    )
    lines.append(
        f"- {drawing} when all requests are greedy: their outputs would all be equal; asking for it is an error."
    )
    lines.append(f"- {searching} when all requests are drawn: it draws nothing; asking for both is an error.")
    not_on = {(other, reason) for row in FEATURES for other, reason in (row.not_on or {}).items()}
    for other, reason in sorted(not_on):
        beside = ", ".join(f"`{row.name}`" for row in FEATURES if (row.not_on or {}).get(other) == reason)
        lines.append(f"- {beside} on requests with `{other}`: {reason}. In their cell half of the requests are drawn.")
    return lines


def sums(outcomes: Mapping[str, str]) -> list[list[str]]:
    """By kind of model and kind of case: how many there are, and what came of them."""
    rows = []
    for kind, family in kinds.KINDS.items():
        for size, what in ((2, "pairs"), (3, "triples")):
            cases = [case for case in kinds.cases(0) if case.family == family and len(case.names) == size]
            rows.append([kind, f"`{family}`", what, *_counts((case.id for case in cases), outcomes)])
    every = all_cases(0)
    for what, size in (("alone", 1), ("pairs, half greedy, half drawn", 2)):
        ids = [case.id for case in every if len(case.names) == size]
        rows.append(
            [
                "all",
                f"{len({case.family for case in every})} models" if size == 1 else f"{len(FAMILIES)} models",
                what,
                *_counts(ids, outcomes),
            ]
        )
    for level in few_bits.LEVELS:
        ids = [case.id for case in few_bits.cases(level, 0)]
        rows.append([level, f"{len(few_bits.FORMS)} forms", "alone, and all at once", *_counts(ids, outcomes)])
    return rows


def _counts(ids: Iterable[str], outcomes: Mapping[str, str]) -> list[str]:
    found = Counter(outcomes.get(name, "not run") for name in ids)
    return [str(found.total()), *(str(found[outcome]) for outcome in (*record.OUTCOMES, "not run"))]


def page(runs: list[dict[str, Any]]) -> str:
    """The whole of it. ``runs``: as ``record.read`` gives them."""
    outcomes = record.outcomes(runs)
    columns = [f"`{name}`" for name in NAMES]
    lines = [HEAD, "## Architectures and features", ""]
    lines += _table(["", *columns, "all at once"], architecture_rows(outcomes))
    lines += ["", "## Features and features", ""]
    lines += [
        "Each cell asks for the pair on a dense model, one with latent attention and experts, one with sliding windows",
        "and one with recurrent states, all requests greedy, and all drawn at temperature 0.9, twelve at once.",
        "",
    ]
    lines += _table(["", *columns], pair_rows(outcomes))
    lines += ["", "## Forms of weights and features", ""]
    lines += [
        "Every form of quantised files that is read, and what is rounded at load, against the plain run on the same",
        "numbers. A cell of a feature asks for it once: with activations in float32 or in bfloat16, keys and values as",
        f"those, in `int8` or in `fp8`, at level {' or '.join(few_bits.LEVELS)}; all of these in turn. *all at once*",
        "asks for both dtypes with all three ways of keeping keys and values, half of them at each level.",
        "",
    ]
    lines += _table(["", *columns, "all at once"], form_rows(outcomes))
    lines += ["", "## How many", ""]
    lines += _table(["kind", "model", "cases", "number", *record.OUTCOMES, "not run"], sums(outcomes))
    lines += ["", "## Why not", "", *reasons(), "", "## Runs", ""]
    lines += _table(["date", "commit", *record.OUTCOMES], _runs(runs))
    return "\n".join(lines) + "\n"


def _runs(runs: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [run["date"], f"`{run['commit']}`", *(str(len(record.ids(run, outcome))) for outcome in record.OUTCOMES)]
        for run in runs
    ]


def main() -> int:
    """The command line."""
    wanted = page(record.read())
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"docs/{PAGE.name} is out of date; run: make matrix", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
