"""The drawn sample: a small imitation of a WTS download, its ground truth and its pretrained tiny model."""
