"""A small local web page over trajectory stores: filter, open, compare."""
