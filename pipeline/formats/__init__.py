"""File formats. One file per format; the file's name is the format's id. Paths never hold more than one file."""
