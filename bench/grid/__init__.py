"""Many cells: what is planned, scheduled, displayed, stopped, and timed."""
