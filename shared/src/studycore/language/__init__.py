"""Language models and text: WordNet as a corpus, the models that come along, and those that others published.

Needs the extra studycore[lm].
"""
