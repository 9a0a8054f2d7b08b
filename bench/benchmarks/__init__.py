"""Benchmarks: a data set and the way it is cut into experiences. A file a data set.

`BENCHMARKS` maps names to components without importing numpy or a data set. A benchmark is opened to a
`base.Dataset` (labelled images), cut by `splits.make_split`, and read by `loading.load_arrays`. Other
packages add theirs through the entry-point group `duallora_bench.benchmarks`.
"""

from __future__ import annotations

from pathlib import Path

from methods.registry import Registry

BENCHMARKS = Registry("benchmark", "bench.benchmarks", Path(__file__).parent, "duallora_bench.benchmarks")
