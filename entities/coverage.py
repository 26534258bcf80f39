"""How much of the entity tree a corpus speaks of, and how much of a corpus the tree knows (arXiv:2602.12705)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from entities.tree import EntityTree


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """``texts_by_entity`` counts the texts that name an entity; ``unknown_terms`` are terms that the tree lacks.

    ``forward`` is the share of the corpus's terms that the tree has (1 without terms), ``backward`` the share of the
    tree that some text names.
    """

    texts_by_entity: Mapping[str, int]
    unknown_terms: Mapping[str, int]
    forward: float
    backward: float


def measure_coverage(tree: EntityTree, texts: Iterable[str], *, terms: Iterable[str] = ()) -> Coverage:
    """Hold a corpus against the tree. ``terms`` are entities that the corpus is known to have, such as its labels."""
    counts = Counter(entity_id for text in texts for entity_id in {mention.entity_id for mention in tree.find(text)})
    by_term = Counter(terms)
    unknown = {term: count for term, count in by_term.items() if not tree.named(term)}
    return Coverage(
        texts_by_entity=counts,
        unknown_terms=unknown,
        forward=1 - sum(unknown.values()) / by_term.total() if by_term else 1.0,
        backward=len(counts) / len(tree.entities),
    )
