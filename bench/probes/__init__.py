"""What a model costs: time, memory, operations, size, energy. A probe a file; each knows nothing of cells.

What each quantity means and how it is measured: docs/measurements.md.
"""
