"""AI City Challenge Track 2: the official caption score and checked submissions."""
