"""Text helpers that both models use. Each deployment gets its own copy in its archive."""

import re
from collections import Counter

COMMON = frozenset({"a", "and", "are", "for", "in", "is", "it", "of", "or", "that", "the", "to", "with"})


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())


def keywords(text: str, limit: int) -> list[str]:
    counts = Counter(word for word in words(text) if word not in COMMON)
    return [word for word, _ in counts.most_common(limit)]
