"""Training and card of the packaged micro ViT."""
