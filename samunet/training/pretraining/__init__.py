"""Pretraining of encoders: of the bundled one on synthetic images, of any on the images of a dataset."""
