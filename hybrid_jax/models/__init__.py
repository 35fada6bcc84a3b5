"""The networks. Flax is used here and nowhere else."""
