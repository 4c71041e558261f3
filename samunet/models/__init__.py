"""A trained model on disk: its folder, its folds over one base, pretrained weights, archives, and the choice of one."""
