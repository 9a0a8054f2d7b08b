"""Benchmarks: a data set and how it is divided into tasks. One file per data set.

`BENCHMARKS` maps names to components without importing numpy or a data set. A benchmark opens to a
`base.Dataset` of labelled images, `splits.make_split` divides it, and `loading.load_arrays` decodes the
images. A file of this package, or of another one with an entry point of the group
`duallora_bench.benchmarks`, marks its class with `register`, and configures its options with `STRICT`.
"""

from __future__ import annotations

from pathlib import Path

from methods.hyper import STRICT
from methods.registry import Registry, register

__all__ = ["BENCHMARKS", "STRICT", "register"]

BENCHMARKS = Registry("benchmark", "bench.benchmarks", Path(__file__).parent, "duallora_bench.benchmarks")
