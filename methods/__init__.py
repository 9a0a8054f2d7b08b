"""Continual-learning methods as Avalanche plugins. One file a method; see `methods.registry`."""

import warnings

# Avalanche brings qpsolvers along, which complains where it finds no solver; nothing here needs one.
warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
