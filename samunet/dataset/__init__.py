"""The raw dataset in nnU-Net's layout: dataset.json, labels, cases and their files, checks, splits."""
