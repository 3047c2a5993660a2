"""Generation: one path from requests to media, edits on top of it, and the files that come out."""
