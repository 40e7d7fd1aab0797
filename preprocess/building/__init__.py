"""All videos of a split -> its shards: what, where, by whom, and what was there before."""
