"""Activation patterns: which linear piece each unit is on, for samples by the million."""
