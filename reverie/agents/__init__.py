"""One file per paper, all in the same order of parts, so that the difference of two files tells the lineage."""
