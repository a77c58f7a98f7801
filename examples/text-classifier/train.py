"""Make data/weights.json from reviews.csv: smoothed log-likelihoods of each word under each label."""

import csv
import json
import math
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    words: dict[str, Counter[str]] = {}
    texts: Counter[str] = Counter()
    with (HERE / "reviews.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts[row["label"]] += 1
            words.setdefault(row["label"], Counter()).update(re.findall(r"[a-z']+", row["text"].lower()))
    vocabulary = sorted(set().union(*words.values()))
    weights = {
        "prior": {label: round(math.log(count / texts.total()), 6) for label, count in sorted(texts.items())},
        "words": {
            word: {
                label: round(math.log((counts[word] + 1) / (counts.total() + len(vocabulary))), 6)
                for label, counts in sorted(words.items())
            }
            for word in vocabulary
        },
    }
    (HERE / "data" / "weights.json").write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
