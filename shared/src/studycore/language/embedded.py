"""The language models that need no model hub, by name.

from studycore.language.embedded import locate
model = AutoModelForCausalLM.from_pretrained(locate("studycore/smollm2-135m-instruct"))
"""

from studycore.language import reference_lm, smollm2

MODELS = {reference_lm.NAME: reference_lm.locate, smollm2.NAME: smollm2.locate}
"""Name -> what finds its folder. The first comes along with studycore; `studycore language fetch` brings the other."""


def locate(name: str) -> str:
    """What `from_pretrained` takes for a model's name: the folder of one of MODELS, else the name itself.

    UserError when that folder is not there.
    """
    return MODELS[name](name) if name in MODELS else name
