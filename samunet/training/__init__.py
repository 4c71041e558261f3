"""Trains one fold: sampling and augmentation, loss, schedule, checkpoints, log, and the fold's final validation."""
