"""Losses. One file per loss; the file's name is the loss's id."""
