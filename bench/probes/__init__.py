"""Measurements of what a model costs: time, memory, operations, size, energy. One file per quantity.

No probe depends on cells. The definition of each quantity is in docs/measurements.md.
"""
