"""Programs that are not part of the package; run from the repository's root: `python -m scripts.X.Y`."""
