"""A release pipeline for image classifiers served by NVIDIA Triton."""

import os

# ONNX Runtime reports to its maker, and for that keeps a database in the user's cache and `.ses` in the temporary
# folder. Only this stops it all (its Privacy.md), and only before the import; the server's backends inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
