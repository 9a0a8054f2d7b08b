"""What the server of the worker processes imports, so that a forked worker has it at once.

Only the server may import this module: it ends the process without the interpreter's own clearing up.
"""

from __future__ import annotations

import atexit
import gc
import os
from importlib import import_module

MODULES = (
    "bench.cell.inference",
    "bench.cell.runner",
    "bench.cell.suitability",
    "bench.grid.grid_plan",
    "bench.grid.sessions",
    "sklearn.datasets",  # half a second, for the benchmark that a command has by default
)

gc.disable()  # what is imported stays: looking through it again and again takes as long as importing it
for name in MODULES:
    import_module(name)
gc.freeze()
gc.enable()
# The server has nothing to save, and is as long about freeing its modules as about importing them. Some
# libraries also print what they take for leaks, because frozen objects are not collected.
atexit.register(os._exit, 0)
