"""Look at captions: the gallery, charts and attention maps."""
