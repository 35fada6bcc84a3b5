"""Measurements of trained models: likelihood bounds, and the quality of generated text."""
