"""Models that read text and say how likely it is."""
