"""From trained folds to the model that is handed on: cross-validated scores, ensembles, postprocessing, the choice."""
