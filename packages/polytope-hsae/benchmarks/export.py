"""A trained hierarchical autoencoder in SAELens: its export is loaded there; prints the variance that it explains, and how far codes are apart.

    python packages/polytope-hsae/benchmarks/export.py TRAIN_FOLDER ACTIVATIONS_FOLDER GEOMETRY_FOLDER

The folders are those of finished jobs (runs/polytope-hsae/cache/train-..., activations-..., geometry-...). Needs sae-lens, in an
environment of its own: see sae_step.py.
"""

import argparse
import tempfile
from pathlib import Path

from polytope_hsae.data import TEST, open_store
from polytope_hsae.metrics import ExplainedVariance
from polytope_hsae.models import SparseAutoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("activations", type=Path)
    parser.add_argument("geometry", type=Path)
    o = parser.parse_args()
    from sae_lens import SAE

    from polytope_hsae.saelens import register

    register()

    store = open_store(o.geometry, o.activations)
    x_ND = store.rows(store.sample(TEST, 2048))
    model = SparseAutoencoder.from_pretrained(o.train / "sae")
    flat = model.to_flat()
    with tempfile.TemporaryDirectory() as place:
        flat.save(place)
        theirs = SAE.load_from_disk(place, device="cpu")
    apart = (theirs.encode(x_ND[:256]) - flat.encode(x_ND[:256])).abs().max() / flat.encode(x_ND[:256]).max()
    print(f"codes: largest difference over largest code {float(apart):.1e}")
    for name, act in (("the model", model), ("its flat export", flat), (f"SAELens' {type(theirs).__name__}", theirs)):
        found = ExplainedVariance()
        for part in x_ND.split(256):
            found.add(part, act(part).detach())
        print(f"{name}: explained variance {found.value():.4f}")


if __name__ == "__main__":
    main()
