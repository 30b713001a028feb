"""Measurements against what people use today, run by `bin/bench`."""
