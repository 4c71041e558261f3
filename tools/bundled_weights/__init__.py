"""The factory of the weights in the package: synthetic images and what they teach."""
