"""Pretraining of the bundled encoder on randomised synthetic images."""
