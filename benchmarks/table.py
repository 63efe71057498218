"""Make the tables of ``benchmarks/README.md`` from ``benchmarks/results/*.json``.

python benchmarks/table.py
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
START, END = "<!-- tables -->", "<!-- end of tables -->"


def table(path: Path) -> str:
    rows = json.loads(path.read_text())
    machines = sorted({row["machine"] for row in rows})
    lines = [
        f"## {path.stem}",
        "",
        f"{'; '.join(machines)}. Command: `{rows[0]['command']}`, at {rows[0]['commit']}.",
        "",
        "| what | ours | floor | ours / floor | peer | ours / peer | threads |",
        "|---|--:|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        peer = "" if row["peer"] is None else f"{number(row['peer'])} {row['unit']} ({row['peer_version']})"
        ours = "not reached" if row["ours"] is None else f"{number(row['ours'])} {row['unit']}"
        lines.append(
            f"| {row['what']} | {ours} | {number(row['floor'])} | "
            f"{number(row['ratio_to_floor'])} | {peer} | {number(row['ratio_to_peer'])} | {row['threads']} |"
        )
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    page = HERE / "README.md"
    head = page.read_text().split(START)[0]
    tables = "\n\n".join(table(path) for path in sorted((HERE / "results").glob("*.json")))
    page.write_text(f"{head}{START}\n\n{tables}\n\n{END}\n")
