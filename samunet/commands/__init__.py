"""One thin module per console script: parsing, messages and exit statuses. What they do lives in the rooms below."""
