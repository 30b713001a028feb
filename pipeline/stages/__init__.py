"""Stages: verbs that take records and return a record. They never import each other; `pipeline.release` orders them."""
