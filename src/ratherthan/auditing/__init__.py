"""WHERE, over a whole data set, does a network go wrong, and what is it looking at when it does."""
