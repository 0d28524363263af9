"""The report of an evaluation: a page, plots, and other codecs to compare with (anchors)."""
