"""What people read: the page of a training `run`, of an evaluation's `results`, of a `comparison` of two scorings."""
