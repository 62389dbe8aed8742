"""spaCy nlp.pipe(n_process=2) over a blank English pipeline with a rule-based sentencizer."""

import hashlib
import random

import spacy

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "box",
    "near",
    "Dr.",
    "Smith",
]


def texts(count):
    rng = random.Random(11)
    for _ in range(count):
        yield " ".join(
            " ".join(rng.choices(WORDS, k=rng.randint(4, 18))) + rng.choice(".!?")
            for _ in range(12)
        )


def main():
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Dr. Smith"}])
    digest = hashlib.sha256()
    for doc in nlp.pipe(texts(3000), n_process=2, batch_size=100):
        digest.update(repr([(s.start, s.end) for s in doc.sents]).encode())
        digest.update(repr([(e.start, e.label_) for e in doc.ents]).encode())
    print("digest:", digest.hexdigest())


if __name__ == "__main__":
    main()
