"""Turn the JSON of a benchmark run into the tables and the figure of docs/performance.md.

``python benchmarks/report.py RESULTS.json --page docs/performance.md --figure FIGURE.png`` rewrites
what stands between the page's two marker comments (``--section NAME`` names the pair; ``--only
update`` takes one table). Times are medians; a ratio is the median over
the run's turns of neighbours' ratios, with the least and the greatest in brackets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

OURS = "trpo_fast"
PEERS = ("sb3-contrib", "tianshou")
TITLES = {
    "update": "Whole policy update (10 plain CG iterations, no critic)",
    "solve": "Solve (10 plain CG iterations, preparations included)",
    "Fisher product": "One Fisher product",
}

Times = dict[str, dict[int, dict[str, float]]]  # contender -> turn -> figures


class Results:
    """A run's records by operation, size, contender and turn, in the order of the run."""

    def __init__(self, path: Path, note: str) -> None:
        document = json.loads(path.read_text())
        self.machine: dict[str, Any] = document["machine_info"]
        self.note = note
        self.date: str = document["datetime"][:10]
        self.tables: dict[str, dict[str, Times]] = {}
        self.facts: dict[str, Any] = {}
        self.peak: float | None = None  # GF/s, the best that any record saw
        for record in document["benchmarks"]:
            facts = record["extra_info"]
            if "operation" not in facts:
                continue
            self.facts = facts
            self.peak = max(self.peak or 0.0, facts["fma_peak_gflops"] or 0.0) or None
            sizes = self.tables.setdefault(facts["operation"], {})
            turns = sizes.setdefault(facts["size"], {}).setdefault(facts["contender"], {})
            figures = {"seconds": record["stats"]["median"]}
            for name in ("gflops", "peak_bytes"):
                if facts.get(name) is not None:
                    figures[name] = facts[name]
            turns[facts["turn"]] = figures

    def contenders(self, operation: str) -> list[str]:
        names = (name for times in self.tables[operation].values() for name in times)
        return list(dict.fromkeys(names))


def middle(times: Times, contender: str, figure: str) -> float | None:
    found = [turn[figure] for turn in times.get(contender, {}).values() if figure in turn]
    return median(found) if found else None


def ratios(times: Times, contender: str) -> list[float]:
    """Contender's time over ours, one ratio a turn."""
    ours, theirs = times.get(OURS, {}), times.get(contender, {})
    return [theirs[turn]["seconds"] / ours[turn]["seconds"] for turn in ours if turn in theirs]


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def ratio_text(found: list[float]) -> str:
    if not found:
        return "-"
    text = f"**{median(found):.1f}x**"
    return text if len(found) == 1 else f"{text} ({min(found):.1f}-{max(found):.1f})"


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed_table(results: Results, operation: str) -> str:
    contenders = results.contenders(operation)
    peers = [name for name in PEERS if name in contenders]
    rows = [
        [
            "N x O x A x H",
            *contenders,
            "GF/s",
            "share of FMA peak",
            *(f"{p} / {OURS}" for p in peers),
        ]
    ]
    for size, times in results.tables[operation].items():
        gflops = middle(times, OURS, "gflops")
        share = gflops / results.peak if gflops and results.peak else None
        rows.append(
            [
                size.replace("x", " x "),
                *(milliseconds(middle(times, name, "seconds")) for name in contenders),
                "-" if gflops is None else f"{gflops:.0f}",
                "-" if share is None else f"{share:.0%}",
                *(ratio_text(ratios(times, name)) for name in peers),
            ]
        )
    return f"### {TITLES[operation]}\nMilliseconds.\n\n{table(rows)}\n"


def memory_table(results: Results) -> str:
    rows = [["N x O x A x H", *results.contenders("memory")]]
    for size, times in results.tables["memory"].items():
        peaks = (middle(times, name, "peak_bytes") for name in rows[0][1:])
        rows.append(
            [size.replace("x", " x "), *("-" if p is None else f"{p / 2**20:.0f}" for p in peaks)]
        )
    return f"### Peak memory of the update\nMiB above the batch and the policy.\n\n{table(rows)}\n"


def machine_text(results: Results) -> str:
    facts, cpu = results.facts, results.machine["cpu"]
    versions = ", ".join(
        f"{name} {facts[name]}"
        for name in ("trpo_fast", "torch", "numpy", *PEERS, "stable-baselines3")
        if facts.get(name)
    )
    peak = results.peak
    return (
        f"{results.note} on {results.date}: {cpu.get('brand_raw', 'unknown CPU')}, "
        f"{facts['threads']} threads, instruction set {facts['isa']}, Linux "
        f"{results.machine['release'].split('-')[0]}, Python {results.machine['python_version']}; "
        f"{versions}. "
        + (f"Peak of float32 FMAs, measured in the same run: {peak:.0f} GF/s.\n" if peak else "\n")
    )


def report(results: Results, only: Sequence[str] = (*TITLES, "memory")) -> str:
    parts = [machine_text(results)]
    parts += [speed_table(results, n) for n in TITLES if n in only and n in results.tables]
    if "memory" in only and "memory" in results.tables:
        parts.append(memory_table(results))
    return "\n".join(parts)


def rewrite(page: Path, section: str, text: str) -> None:
    """Put ``text`` between the markers of a page's section.

    Raises:
        ValueError: a marker is missing.
    """
    first, last = (f"<!-- {section}: {word} -->" for word in ("begin", "end"))
    before, begin, rest = page.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{page} lacks {first} or {last}")
    page.write_text(f"{before}{first}\n{text}{last}{after}")


def figure(results: Results, path: Path) -> None:
    """How long each contender's update takes, relative to ours, for every size."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    sizes = results.tables["update"]
    others = [name for name in results.contenders("update") if name != OURS]
    fig, axes = plt.subplots(figsize=(8.5, 0.62 * len(sizes) + 1.3), layout="constrained")
    height = 0.8 / len(others)
    for index, name in enumerate(others):
        found = [(row, median(r)) for row, t in enumerate(sizes.values()) if (r := ratios(t, name))]
        places = [row + (index - (len(others) - 1) / 2) * height for row, _ in found]
        bars = axes.barh(places, [value for _, value in found], height, label=name)
        axes.bar_label(bars, [f"{value:.1f}" for _, value in found], padding=2, fontsize=7)
    labels = [
        f"{size.replace('x', ' x ')}\n({milliseconds(middle(times, OURS, 'seconds'))} ms)"
        for size, times in sizes.items()
    ]
    axes.set_yticks(range(len(sizes)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(f"time of one policy update, {OURS} = 1")
    axes.set_ylabel("samples x observations x actions x hidden")
    axes.set_title("TRPO policy update: 10 CG iterations, critic excluded", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, help="page to rewrite between its markers")
    parser.add_argument("--section", default="results", metavar="NAME", help="of the markers")
    parser.add_argument("--only", nargs="+", choices=TITLES, help="these tables alone")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--note", default="`make bench`", help="how the run was made")
    options = parser.parse_args()
    results = Results(options.results, options.note)
    text = report(results, options.only) if options.only else report(results)
    print(text)
    if options.page is not None:
        rewrite(options.page, options.section, text)
    if options.figure is not None:
        figure(results, options.figure)


if __name__ == "__main__":
    main()
