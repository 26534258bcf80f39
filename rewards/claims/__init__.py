"""What a trace says that can be held against evidence: a kind of claim per module, told apart in `claim`."""
