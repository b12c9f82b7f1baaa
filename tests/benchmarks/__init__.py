"""Benchmarks that are run by hand: speed, and the images of the README."""
