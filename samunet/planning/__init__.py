"""From a dataset's fingerprint to its plans. Every rule is a small function that states its reason."""
