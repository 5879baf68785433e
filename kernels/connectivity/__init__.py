"""Linear connectivity: L_ij, the mean over outputs of r² between the output and the position on the segment from i to j."""
