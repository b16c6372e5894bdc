"""The page of the learned feature tree; figures.py draws the rest."""

from pathlib import Path
from typing import Any

from studycore.files import write_atomic

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Feature tree</title>
<style>body{font:15px/1.45 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}summary{cursor:pointer}
details{margin:.3em 0 .3em 1em}code{background:#f3f3f3}.n{color:#777}</style>
<h1>Feature tree</h1><p>{{ name }}: parents by how often they fire on 4,096 test activations, their children, and the contexts in
which each is strongest (the token that follows in brackets). A name in bold is the concept that a latent is matched to, however pure it is.</p>
{% for p in parents %}<details><summary>parent {{ p.latent }}{% if p.concept %} &middot; <b>{{ p.concept }}</b>{% if p.purity is defined %} ({{ "%.1f" | format(100 * p.purity) }} % of its activation is on
the concept, of which it finds {{ "%.0f" | format(100 * p.recall) }} %){% endif %}{% endif %}
<span class="n">fires {{ p.fires }}</span></summary><ul>{% for c in p.contexts %}<li>{{ c }}</li>{% endfor %}</ul>
{% for k in p.children %}<details><summary>child {{ k.latent }} <span class="n">fires {{ k.fires }}</span></summary>
<ul>{% for c in k.contexts %}<li>{{ c }}</li>{% endfor %}</ul></details>{% endfor %}</details>{% endfor %}</html>
"""


def write_tree_page(parents: list[dict[str, Any]], path: Path, name: str) -> Path:
    """A static page with the learned tree."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    write_atomic(path, environment.from_string(PAGE).render(parents=parents, name=name))
    return path
