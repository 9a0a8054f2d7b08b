"""Continual-learning methods as Avalanche plugins. One file a method; see `methods.registry`."""
