"""The machine around a run: devices, processes, files, checkpoints, progress."""
