"""Scores of label maps: :mod:`metrics` counts voxels in one case, :mod:`summary` gathers cases for summary.json."""
