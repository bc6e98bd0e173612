"""Result files -> Markdown and PNG: `python -m bench.report [FILE.json ...]`, by default all of bench/results/."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # started as `python bench/report.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import arm_report, plot, tables
from bench.peers.runners import OURS

RESULTS = Path(__file__).parent / "results"
#: The lines of a README between which the speed table stands.
BEGIN, END = "<!-- speed table: begin", "<!-- speed table: end"


#: Results with a table; others are read as they are.
KINDS = ("race", "layers", "arm_mca")


def load(path: Path) -> dict:
    """A result document. Raises ValueError for a file that race.py, arm_mca.py or the layer benchmarks never wrote."""
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or document.get("kind") not in KINDS:
        raise ValueError(f"{path}: not a result of bench.race, of bench/test_layers.py or of bench.arm_mca")
    return document


def is_plain(path: Path) -> bool:
    document = json.loads(path.read_text())
    return isinstance(document, dict) and document.get("kind") not in KINDS


def write(path: Path, folder: Path) -> list[Path]:
    """NAME.md and, for times, NAME.png in `folder` for the result file NAME.json; returns their paths."""
    document = load(path)
    markdown, image = folder / f"{path.stem}.md", folder / f"{path.stem}.png"
    folder.mkdir(parents=True, exist_ok=True)
    if document["kind"] == "arm_mca":
        markdown.write_text(arm_report.markdown(document))
        return [markdown]
    if document["kind"] == "race":
        markdown.write_text(tables.race_markdown([document]))
        plot.save(plot.race_figure([document]), image)
    else:
        markdown.write_text(tables.layer_markdown(document))
        plot.save(plot.layer_figure(document), image)
    return [markdown, image]


def has_peers(document: dict) -> bool:
    """Whether it is a race against others, and not one of ours alone, such as int8 against fp32 on one ISA."""
    return document["kind"] == "race" and any(
        not name.startswith(OURS) for race in document["races"] for name in race["peers"]
    )


def readme_table(paths: list[Path]) -> str:
    """The README's speed table from race files."""
    documents = [load(path) for path in paths]
    wrong = [str(path) for path, document in zip(paths, documents, strict=True) if document["kind"] != "race"]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not a race")
    return tables.verdicts_markdown(documents)


def fill_in(text: str, table: str) -> str:
    """The text with all between its two markers replaced by the table. Raises ValueError where they are missing."""
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        raise ValueError(f"no lines {BEGIN!r} ... and {END!r} in this order")
    first = text.index("\n", begin) + 1
    return f"{text[:first]}{table}{text[end:]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for .md and .png (default bench/results)")
    parser.add_argument("--table", action="store_true", help="only print one Markdown table of all races")
    parser.add_argument("--readme", type=Path, help="only put that table between the markers of this file")
    options = parser.parse_args(arguments)
    try:
        files = options.files or [f for f in sorted(RESULTS.glob("*.json")) if not is_plain(f)]
        if options.table or options.readme:
            table = readme_table(options.files or [f for f in files if has_peers(load(f))])
            if options.readme:
                options.readme.write_text(fill_in(options.readme.read_text(), table))
            else:
                print(table, end="")
            return 0
        for file in files:
            for path in write(file, options.out):
                print(f"written: {path}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not files:
        print(f"error: no result files in {RESULTS}; run python -m bench.race first", file=sys.stderr)
    return int(not files)


if __name__ == "__main__":
    sys.exit(main())
