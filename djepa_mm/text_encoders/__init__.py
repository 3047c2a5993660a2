"""Texts to what a model reads of them: numbers of symbols that it learns, or features of a network that is frozen."""
