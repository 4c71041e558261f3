"""Export and installation of models, ONNX, and checkpoints of SAM and SAMed."""
