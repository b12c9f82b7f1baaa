"""Benchmarks and studies that are run by hand: speed beside the recipe, ablations, the README pictures."""
