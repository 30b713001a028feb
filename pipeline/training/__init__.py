"""The engine: batches on a device, the loop over them, checkpoints."""
