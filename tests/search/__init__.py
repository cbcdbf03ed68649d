"""Searches that are made of others, and the indexes that serve them."""
