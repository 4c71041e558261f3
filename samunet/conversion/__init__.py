"""From data as people have it to a raw dataset: find cases, look at all of them, decide, write the folder whole."""
