"""Building blocks of the transformers: attention, blocks, positions."""
