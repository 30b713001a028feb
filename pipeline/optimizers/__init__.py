"""Optimizers. One file per optimizer; the file's name is the optimizer's id."""
