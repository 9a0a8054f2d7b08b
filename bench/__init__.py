"""What is run and how it is measured. Knows no method by name."""
