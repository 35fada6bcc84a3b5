"""Text to fixed-length token records, and records to batches."""
