"""Local complexity: how many units change sign in the neighbourhood of a sample."""
