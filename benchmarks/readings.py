"""How much parallel text readings need, from where it may come, and where they hurt: SIB-200, a probe on English.

    python benchmarks/readings.py                                   every arm, one seed: some 40 minutes on 2 cores
    python benchmarks/readings.py --arms centre 701 100 --seeds 3
    python benchmarks/readings.py --dictionaries gatitos=DIR --parallel udhr=FILE --arms centre gatitos udhr

Arms that are numbers read targets by lexicons of so many parallel rows a language, drawn by the seed; all other rows
keep their texts and lose their translations. `disjoint` labels 350 English rows, and lexicons and means come from the
other 351 alone, so that no row is both labelled and translated. `other labels` turns the labels of the targets' rows,
which nothing may read. Dictionaries are folders of LANGUAGE-eng_Latn.tsv, parallel text what `corpus.parallel` reads;
with either no row of the corpus has a translation.

Targets are those of benchmarks/techniques.py. Differences are paired by test sentence over the same seeds, with the 95%
interval of the bootstrap. Finished runs are kept in `--work`; features of texts are shared by the arms of a process.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import techniques as others

from xlt_ray import config
from xlt_ray.config.experiment import Experiment
from xlt_ray.config.sections import CorpusConfig
from xlt_ray.corpora import loaders
from xlt_ray.errors import InputError
from xlt_ray.evaluation.paired.comparison import compare_seeds
from xlt_ray.evaluation.predictions import load_predictions
from xlt_ray.languages import lexicon
from xlt_ray.translation import induced

ENGLISH = "eng_Latn"
CENTRE = {"centre": {"rows": 200}}
READ = {"translate_test": {"scores": [0.3, 0.1, 0.05]}, **CENTRE}
LABELLED = 350  # rows of the disjoint protocol
SIZES = ("50", "100", "200", "350", "701")
ARMS = ("centre", *SIZES, "disjoint centre", "disjoint", "other labels")


def main() -> None:
    """Do every run that is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=others.SHARED / "data" / "sib200")
    parser.add_argument("--published", type=Path, default=others.SHARED / "facts" / "sib200_published.csv")
    parser.add_argument("--languages", type=int, default=24, help="targets, half of them seen")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=[], help=f"of {', '.join(ARMS)} and what the next two name")
    parser.add_argument("--dictionaries", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--parallel", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--work", type=Path, default=Path("runs/readings"), help="where finished runs are kept")
    args = parser.parse_args()
    with args.published.open(encoding="utf-8") as file:
        seen = {row["code"]: row["in_xlmr"] == "1" for row in csv.DictReader(file)}
    targets = others.chosen_targets(args.data, seen, args.languages)
    given = {kind: dict(one.split("=", 1) for one in getattr(args, kind)) for kind in ("dictionaries", "parallel")}
    arms = args.arms or [*ARMS, *given["dictionaries"], *given["parallel"]]
    if unknown := [arm for arm in arms if arm not in (*ARMS, *given["dictionaries"], *given["parallel"])]:
        parser.error(f"--arms {unknown[0]}: there is no such arm")
    found: dict[str, dict[int, Any]] = {arm: {} for arm in arms}
    for seed in range(args.seeds):
        for arm in arms:
            # only which rows have translations is drawn; without a draw a seed changes nothing
            drawn = arm in SIZES[:-1] or arm.startswith("disjoint")
            if (drawn or seed == 0) and (made := _kept(args, arm, seed, targets, given)) is not None:
                found[arm][seed] = made
    _print({arm: each for arm, each in found.items() if each}, {code: seen[code] for code in targets})
    for name, folder in given["dictionaries"].items():
        _precision(args.data, targets, name, Path(folder))


def _kept(args: argparse.Namespace, arm: str, seed: int, targets: Sequence[str], given: Mapping[str, Any]) -> Any:
    folder = args.work / f"{arm.replace(' ', '_')}-{args.languages}-{seed}"
    if not (folder / "facts.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            others._run(_experiment(args, arm, seed, targets, given), str(folder), ["test"])
        except InputError as error:
            print(f"{arm}, seed {seed}: refused: {str(error).splitlines()[0]}", flush=True)
            return None
        print(f"{arm}, seed {seed}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    return load_predictions(folder / "test.npz")


def _experiment(
    args: argparse.Namespace, arm: str, seed: int, targets: Sequence[str], given: Mapping[str, Any]
) -> Experiment:
    data = args.work / "data" / f"{arm.replace(' ', '_')}-{seed}"
    corpus: dict[str, Any] = {"loader": "files", "path": str(data), "label": "category", "id": "index_id"}
    corpus |= {"overlap": "drop_train", "languages": [ENGLISH, *targets]}
    chosen: dict[str, Any] = READ
    if arm in ("centre", "disjoint centre"):
        chosen = CENTRE
    if arm in given["dictionaries"]:
        # every entry of a dictionary scores 1, so that there is one reading beside the original
        chosen = {"translate_test": {"scores": [0.5], "lexicons": given["dictionaries"][arm]}, **CENTRE}
    if arm in given["parallel"]:
        corpus["parallel"] = given["parallel"][arm]
    if arm.startswith("disjoint"):
        corpus["parallel"] = str(data / "beside.tsv")
    _write(args.data, data, (ENGLISH, *targets), arm, seed)
    return config.build(
        {
            "name": "readings",
            "corpus": corpus,
            "sources": [ENGLISH],
            "training": {"method": "probe", **others.CHOSEN},
            "techniques": chosen,
            "tracking": {"uri": "off"},
        }
    )


def _write(source: Path, data: Path, codes: Sequence[str], arm: str, seed: int) -> None:
    """Write the corpus of an arm: which train rows there are, and which of them share their ids with English."""
    tables = {
        (code, split): _lines(source / code / f"{split}.tsv") for code in codes for split in ("train", "dev", "test")
    }
    ids = [line.split("\t")[0] for line in tables[ENGLISH, "train"][1:]]
    order = dict(zip(np.random.default_rng(seed).permutation(ids).tolist(), range(len(ids)), strict=True))
    labelled = {one for one, place in order.items() if place < LABELLED}
    aligned = {one for one, place in order.items() if place < int(arm)} if arm in SIZES else set(ids)
    if arm not in (*SIZES, "centre", "other labels"):
        aligned = set()  # dictionaries and parallel text alone
    disjoint = arm.startswith("disjoint")
    for (code, split), (head, *lines) in tables.items():
        kept = []
        for place, line in enumerate(lines):
            one, label, text = line.split("\t", 2)
            if split == "train" and disjoint and (one in labelled) != (code == ENGLISH):
                continue
            if split == "train" and code != ENGLISH and one not in aligned:
                one = f"{code}:{one}"
            if code != ENGLISH and arm == "other labels":
                label = lines[place - 1].split("\t")[1] if split == "train" else label
            kept.append(f"{one}\t{label}\t{text}")
        (data / code).mkdir(parents=True, exist_ok=True)
        (data / code / f"{split}.tsv").write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    if disjoint:
        sides = {code: dict(line.split("\t")[::2] for line in tables[code, "train"][1:]) for code in codes}
        rows = ["\t".join(sides[code].get(one, "") for code in codes) for one in ids if one not in labelled]
        (data / "beside.tsv").write_text("\n".join(["\t".join(codes), *rows]) + "\n", encoding="utf-8")


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _print(found: Mapping[str, Mapping[int, Any]], seen: Mapping[str, bool]) -> None:
    groups = {"seen": [c for c in seen if seen[c]], "unseen": [c for c in seen if not seen[c]]}
    print("\naccuracy x 100 on test; difference from centre of the same rows [95%]\n")
    print("| arm | seeds | seen | unseen | seen, difference | unseen, difference |\n|---|---|---|---|---|---|")
    for arm, each in found.items():
        runs, base = list(each.values()), _base(found, arm)
        cells = [arm, str(len(runs))]
        cells += [f"{100 * np.mean([one[c].score for one in runs for c in codes]):.1f}" for codes in groups.values()]
        for codes in groups.values():
            sides = [[{code: one[code] for code in codes} for one in side] for side in (runs, base)]
            there = compare_seeds(*sides) if base and arm not in ("centre", "disjoint centre") else None
            cells.append(
                ""
                if there is None
                else f"{100 * there.difference:+.1f} [{100 * there.low:+.1f}, {100 * there.high:+.1f}]"
            )
        print("| " + " | ".join(cells) + " |")
    if "701" in found and "centre" in found:
        read, plain = (next(iter(found[arm].values())) for arm in ("701", "centre"))
        gains = {code: 100 * (read[code].score - plain[code].score) for code in seen}
        shown = sorted(gains, key=gains.__getitem__)
        print("\n701 less centre by language: " + ", ".join(f"{code} {gains[code]:+.1f}" for code in shown))


def _precision(data: Path, targets: Sequence[str], name: str, folder: Path) -> None:
    """Print how often induced entries agree with a dictionary, by their score: `lexicon.precision`."""
    corpus = loaders.load(CorpusConfig(loader="files", path=str(data), label="category", id="index_id"))
    rows = corpus.unlabelled([ENGLISH, *targets], ids=True)
    print(f"\nagreement of induced entries with {name}, % (entries in both), by their least score")
    print("| language | 0.5 | 0.3 | 0.1 | 0.05 |\n|---|---|---|---|---|")
    for code in targets:
        file = folder / f"{code}-{ENGLISH}.tsv"
        if not file.is_file() or induced.fault((code, ENGLISH), rows):
            continue
        settings = induced.Settings(0.05, True, CorpusConfig().cache_dir)
        whole, reference = induced.induce((code, ENGLISH), (rows[code], rows[ENGLISH]), settings), lexicon.read(file)
        cells = []
        for score in (0.5, 0.3, 0.1, 0.05):
            entries = {key: options for key, options in whole.entries.items() if options[0][1] >= score}
            share, known = lexicon.precision(replace(whole, entries=entries), reference)
            cells.append(f"{100 * share:.0f} ({known})")
        print(f"| {code} | " + " | ".join(cells) + " |")


def _base(found: Mapping[str, Mapping[int, Any]], arm: str) -> list[Any]:
    """Return the runs that an arm's are compared with, one a run: centre is the same whatever was drawn."""
    each = found.get("disjoint centre" if arm.startswith("disjoint") else "centre", {})
    return [each[seed if seed in each else 0] for seed in found[arm]] if each else []


if __name__ == "__main__":
    main()
