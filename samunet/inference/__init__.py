"""From images to masks: slices through the network in batches, back to the original geometry, and into files."""
