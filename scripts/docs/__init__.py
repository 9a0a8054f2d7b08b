"""Programs behind the documentation: its numbers and its site."""
