"""Programs beside the benchmark; run from the repository's root, `python -m scripts.<name>`."""
