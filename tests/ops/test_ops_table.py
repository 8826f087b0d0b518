"""The operator table and its one selection rule."""

from __future__ import annotations

from dataclasses import fields

import pytest

from headrace.core.errors import ConfigError
from headrace.ops import table
from headrace.ops.reference import norm
from headrace.ops.table import TABLE, Implementation, Ops, select_ops


def test_every_operator_has_a_reference_and_a_field():
    assert set(TABLE) == {f.name for f in fields(Ops)} - {"chosen"}
    assert all(rows[-1].name == "reference" for rows in TABLE.values())


def test_the_choice_is_reported():
    ops = select_ops("cpu")
    assert ops.rms_norm is norm.rms_norm
    assert set(ops.chosen) == set(TABLE)
    assert set(ops.chosen.values()) == {"reference"}


def test_the_first_that_fits_the_device_wins_unless_another_is_forced(monkeypatch):
    quick = Implementation("quick", ".reference.norm", "rms_norm_plus_one", frozenset({"cpu"}))
    monkeypatch.setitem(table.TABLE, "rms_norm", (quick, *TABLE["rms_norm"]))
    assert select_ops("cpu").rms_norm is norm.rms_norm_plus_one
    assert select_ops("cuda").rms_norm is norm.rms_norm
    assert select_ops("cpu", {"rms_norm": "reference"}).rms_norm is norm.rms_norm
    assert select_ops("cpu", "reference").chosen["rms_norm"] == "reference"
    assert select_ops("cpu", {"rms_norm": "quick"}).chosen["rms_norm"] == "quick"


def test_wrong_names_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match=r"no operator is called 'rms_nrom'.*Did you mean 'rms_norm'"):
        select_ops("cpu", {"rms_nrom": "reference"})
    with pytest.raises(ConfigError, match=r"'linear' does not have implementation 'warp'.*reference \(on cpu"):
        select_ops("cpu", {"linear": "warp"})
    with pytest.raises(ConfigError, match="for device 'meta'"):
        select_ops("meta")
