"""Compiling the real programs for devices that are not there."""
