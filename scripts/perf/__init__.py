"""What `nox -s perf` measures."""
