"""One video as a build takes it, to look at."""
