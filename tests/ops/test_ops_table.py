"""The operator table and its one selection rule."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from headrace.core.errors import ConfigError
from headrace.ops import table
from headrace.ops.native import core
from headrace.ops.reference import norm
from headrace.ops.table import TABLE, Implementation, Ops, read_forced, select_ops

CORE_DTYPES = frozenset({torch.float32, torch.bfloat16})


def test_every_operator_has_a_reference_and_a_field():
    assert set(TABLE) == {f.name for f in fields(Ops)} - {"chosen"}
    assert all(rows[-1].name == "reference" for rows in TABLE.values())


def test_the_choice_is_reported():
    ops = select_ops("cpu", torch.float32, "reference")
    assert ops.rms_norm is norm.rms_norm
    assert set(ops.chosen) == set(TABLE)
    assert set(ops.chosen.values()) == {"reference"}


@pytest.mark.parametrize(
    ("device", "dtype", "there", "chosen"),
    [
        ("cpu", torch.float32, True, "native"),
        ("cpu", torch.bfloat16, True, "native"),
        ("cpu", torch.float16, True, "reference"),
        ("cuda", torch.float32, True, "reference"),
        ("cpu", torch.float32, False, "reference"),
    ],
)
def test_the_core_is_taken_where_it_is_and_knows_the_dtype(device, dtype, there, chosen, monkeypatch):
    monkeypatch.setattr(core, "is_available", lambda: there)
    row = Implementation("native", ".reference.linear", "LINEAR", frozenset({"cpu"}), CORE_DTYPES, needs_core=True)
    monkeypatch.setitem(table.TABLE, "linear", (row, TABLE["linear"][-1]))
    assert select_ops(device, dtype).chosen["linear"] == chosen


def test_a_core_that_is_forced_and_missing_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(core, "is_available", lambda: False)
    monkeypatch.setattr(core, "reason", lambda: "it was not built")
    with pytest.raises(ConfigError, match=r"have implementation 'native'.*not here: it was not built"):
        select_ops("cpu", torch.float32, {"linear": "native"})


def test_forced_implementations_are_read_from_text():
    assert read_forced("") is None
    assert read_forced(" reference ") == "reference"
    assert read_forced("linear=reference, rope=native") == {"linear": "reference", "rope": "native"}
    for wrong in ("linear=reference,native", "linear=native,linear=reference"):
        with pytest.raises(ConfigError, match="HEADRACE_OPS"):
            read_forced(wrong)


def test_the_first_that_fits_the_device_wins_unless_another_is_forced(monkeypatch):
    quick = Implementation("quick", ".reference.norm", "rms_norm_plus_one", frozenset({"cpu"}))
    monkeypatch.setitem(table.TABLE, "rms_norm", (quick, *TABLE["rms_norm"]))
    assert select_ops("cpu", torch.float32).rms_norm is norm.rms_norm_plus_one
    assert select_ops("cuda", torch.float32).rms_norm is norm.rms_norm
    assert select_ops("cpu", torch.float32, {"rms_norm": "reference"}).rms_norm is norm.rms_norm
    assert select_ops("cpu", torch.float32, "reference").chosen["rms_norm"] == "reference"
    assert select_ops("cpu", torch.float32, {"rms_norm": "quick"}).chosen["rms_norm"] == "quick"


def test_wrong_names_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"no operator is called 'rms_nrom'.*Did you mean 'rms_norm'"):
        select_ops("cpu", torch.float32, {"rms_nrom": "reference"})
    with pytest.raises(ConfigError, match=r"'linear' does not have implementation 'warp'.*reference \(on cpu"):
        select_ops("cpu", torch.float32, {"linear": "warp"})
    with pytest.raises(ConfigError, match="for device 'meta'"):
        select_ops("meta", torch.float32)
