"""Training and the card of the packaged backbone."""
