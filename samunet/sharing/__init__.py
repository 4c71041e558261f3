"""Handing trained models on: as a zip that others install, or as ONNX."""
