"""Blockings that were measured once and for all: the tuner's choices for named targets, so that builds stay byte-identical.

By target and kind of format; what is missing is derived from the number of registers. ``ferrum compile --tune`` measures
on the machine at hand instead, and shows what would belong here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.codegen.kernels.linear import Blocking

RECORDED: Mapping[str, Mapping[str, Blocking]] = {}
