"""Recipes: what they say, how they are read, what is built from them."""
