"""The verdicts on planted models, in all modalities, one line a corpus and model, with the statistics behind them.

    python -m tests.benchmarks.planted_verdicts [--seeds 1] [CORPUS …]

A corpus is a modality (its small made corpus) or a real one. Each line says what was found, the answers (good, varied,
new), and of each statistic the value and, after a stroke, that of held-out examples.
"""

from __future__ import annotations

import argparse
import time

from tests.conftest import MODALITIES, SHARED_DATA
from tests.evaluation.planted_models import KINDS, REAL, made_corpus, real_corpus
from tests.evaluation.planted_verdicts import Suite

OF_SIGNALS = (
    ("frechet", "Fréchet"),
    ("coverage", "coverage"),
    ("precision", "precision"),
    ("roughness", "roughness"),
    ("repeated_share", "repeated"),
    ("singled_out", "singled out"),
    ("signal_singled_out", "in signals"),
)
OF_TEXTS = (
    ("bleu_4", "BLEU-4"),
    ("typical_bits", "bits/char"),
    ("shared_share", "shared"),
    ("distinct_2", "distinct-2"),
    ("copied_share", "copied"),
    ("copied_texts", "half copied"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpora", nargs="*", default=[*MODALITIES, *REAL], metavar="CORPUS")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    right = total = 0
    for name in options.corpora:
        if name in REAL and not (SHARED_DATA / REAL[name]).exists():
            print(f"{name}: {SHARED_DATA / REAL[name]} is not there")
            continue
        suite = Suite(made_corpus(name) if name in MODALITIES else real_corpus(name))
        for kind in KINDS:
            for seed in range(options.seeds):
                started = time.perf_counter()
                scored = suite.score(kind, seed)
                right, total = right + scored.right(kind), total + 1
                columns = OF_TEXTS if suite.corpus.modality == "text" else OF_SIGNALS
                shown = "  ".join(
                    f"{title} {scored.evidence[key].value:.3g}|{scored.evidence[key].held_out:.3g}"
                    for key, title in columns
                )
                verdict = scored.verdict
                print(
                    f"{'' if scored.right(kind) else 'WRONG '}{suite.corpus.name:16}{kind:10}"
                    f"{','.join(verdict.findings) or '-':10}{'/'.join(verdict.answers.values()):20}{shown}  "
                    f"({time.perf_counter() - started:.1f} s)",
                    flush=True,
                )
                if not scored.right(kind):
                    print(verdict.in_words(), flush=True)
    print(f"{right} of {total} right")


if __name__ == "__main__":
    main()
