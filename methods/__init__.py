"""Continual-learning methods as Avalanche plugins, one file per method; see `methods.registry`."""

import warnings

# Avalanche imports qpsolvers, which warns if no solver is installed; nothing here needs one.
warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
