"""Linear regions of piecewise-linear networks: the reference and each backend."""
