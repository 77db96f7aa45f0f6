"""How long the sentences of pages are: python tests/prose.py README.md docs/*.md

Code, tables and headings are no prose. A name in backticks counts as a word, and so does a link's text.
"""

import re
import sys

MOST, MEAN = 35, 18  # words of a sentence


def sentences(text):
    """The sentences of Markdown, as lists of words."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.M | re.S)
    lines = [line for line in text.split("\n") if not re.match(r"\s{4}|\||#", line)]
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines)):
        block = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", block)
        block = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)
        block = re.sub(r"`[^`]*`", "NAME", block)
        for sentence in re.split(r"(?<=[.!?])[*\s]+", " ".join(block.split())):
            if words := re.findall(r"\w[\w'.-]*", sentence):
                yield words


def main():
    every = [(words, path) for path in sys.argv[1:] for words in sentences(open(path, encoding="utf-8").read())]
    for words, path in sorted(every, key=lambda item: -len(item[0]))[:10]:
        print(len(words), path, " ".join(words))
    print(f"{len(every)} sentences, mean {sum(len(words) for words, _ in every) / len(every):.1f} words")


if __name__ == "__main__":
    main()
