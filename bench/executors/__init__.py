"""How cells are spread over a machine: a file an executor."""
