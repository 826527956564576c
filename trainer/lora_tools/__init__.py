"""Tools for LoRA files by low-rank algebra: merge, resize, compare, extract, bake. Each is a function that returns its figures."""
