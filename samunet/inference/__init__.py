"""Prediction: from images to masks in their geometry."""
