"""Criteria: read from a `file`, checked by `rules` or `judged`; `rewards.rubric` makes them a score."""
