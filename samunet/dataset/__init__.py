"""Raw datasets in nnU-Net's layout: their description, labels, cases, integrity and cross-validation splits."""
