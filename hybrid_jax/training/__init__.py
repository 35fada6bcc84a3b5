"""Training, and what a trained run is."""
