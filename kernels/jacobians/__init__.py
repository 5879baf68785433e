"""Local Jacobians in bulk."""
