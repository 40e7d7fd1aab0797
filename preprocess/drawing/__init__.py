"""The drawn set: its cells, pictures and motions."""
