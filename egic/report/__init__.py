"""The report of an evaluation: a page, its plots, other codecs as anchors."""
