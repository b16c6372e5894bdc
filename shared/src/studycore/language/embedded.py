"""The language models that need no model hub, by name.

from studycore.language.embedded import locate
model = AutoModelForCausalLM.from_pretrained(locate("studycore/smollm2-135m-instruct"))
"""

from collections.abc import Iterable

from studycore.errors import UserError
from studycore.language import reference_lm, smollm2, wordnet

MODELS = {reference_lm.NAME: reference_lm.locate, smollm2.NAME: smollm2.locate}
"""Name -> what finds its folder. The first comes along with studycore; `studycore language fetch` brings the other."""


def locate(name: str) -> str:
    """What `from_pretrained` takes for a model's name: the folder of one of MODELS, else the name itself.

    UserError when that folder is not there.
    """
    return MODELS[name](name) if name in MODELS else name


def doctor(names: Iterable[str] = tuple(MODELS)) -> list[tuple[str, bool, str]]:
    """Whether these models, and WordNet, are there: a study's own checks (studycore.study.Study.doctor)."""
    checks = []
    for name in names:
        try:
            checks.append((f"{name} is there: {locate(name)}", True, ""))
        except UserError as error:
            checks.append((f"{name} is there", False, str(error)))
    place = wordnet.find()
    return [*checks, (f"WordNet is there{f': {place}' if place else ''}", place is not None, "`make setup` fetches it")]
