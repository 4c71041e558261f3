"""Cross-validated scores, ensembles, postprocessing, and the choice of the best model."""
