"""Heads: the distribution of one token given its feature, p(x_i | z_i)."""
