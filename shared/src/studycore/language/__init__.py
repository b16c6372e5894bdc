"""Language without a model hub: WordNet as a corpus, the language model that comes along, and how it was trained.

Needs the extra studycore[lm].
"""
