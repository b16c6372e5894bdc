"""A WordNet database of a few synsets in the format of wndb(5WN), as Debian installs it: no lexnames, no index.sense."""

from pathlib import Path

SYNSETS = {  # name: (lexicographer file, words, hypernyms, instance hypernyms, gloss)
    "entity": (3, ["entity"], [], [], "that which exists"),
    "animal": (5, ["animal", "beast"], ["entity"], [], 'a living being that moves; "the animal ran"'),
    "pet": (5, ["pet"], ["animal"], [], "an animal kept at home"),
    "dog": (5, ["dog", "domestic_dog"], ["animal", "pet"], [], 'a kind that barks; "the dog barked"; "a loyal dog"'),
    "person": (18, ["person"], ["animal"], [], "a human being"),
    "Newton": (18, ["Newton", "Isaac_Newton"], [], ["person"], "English mathematician"),
}
OTHERS = {"verb": (38, "run", "move fast"), "adj": (0, "fast", "with speed"), "adv": (2, "quickly", "with speed")}


def write(folder: Path) -> Path:
    """Writes the database into `folder`."""
    folder.mkdir(parents=True)
    header = "  1 a line of a licence\n"
    texts, offsets = {}, {}

    def line(name: str) -> str:
        number, words, above, instance_of, gloss = SYNSETS[name]
        pointers = [("@", other) for other in above] + [("@i", other) for other in instance_of]
        for other, (_, _, theirs, instances, _) in SYNSETS.items():
            pointers += [("~", other)] * (name in theirs) + [("~i", other)] * (name in instances)
        links = " ".join(f"{symbol} {offsets.get(other, 0):08d} n 0000" for symbol, other in pointers)
        listed = " ".join(f"{word} 0" for word in words)
        return f"{offsets.get(name, 0):08d} {number:02d} n {len(words):02x} {listed} {len(pointers):03d} {links} | {gloss}  \n"

    for _ in range(2):  # once for the lengths, once with the offsets that follow from them
        at = len(header)
        for name in SYNSETS:
            texts[name] = line(name)
            offsets[name], at = at, at + len(texts[name])
    (folder / "data.noun").write_text(header + "".join(line(name) for name in SYNSETS))
    index = [
        f"{word.lower()} n 1 0 1 0 {offsets[name]:08d}  \n"
        for name, (_, words, *_) in SYNSETS.items()
        for word in words
    ]
    (folder / "index.noun").write_text(header + "".join(sorted(index)))
    for pos, (number, word, gloss) in OTHERS.items():
        kind = {"verb": "v", "adj": "a", "adv": "r"}[pos]
        frames = " 00" if pos == "verb" else ""
        (folder / f"data.{pos}").write_text(
            header + f"{len(header):08d} {number:02d} {kind} 01 {word} 0 000{frames} | {gloss}  \n"
        )
        (folder / f"index.{pos}").write_text(header + f"{word} {kind} 1 0 1 0 {len(header):08d}  \n")
    for pos in ("noun", "verb", "adj", "adv"):
        (folder / f"{pos}.exc").touch()
    return folder
