"""Requests for text, the driver that answers them, and how text is shown while it appears."""
