"""The table of kv_formats.py, and its place in docs/kv.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "kv.md"
START, END = "<!-- kv_formats -->\n", "<!-- end of kv_formats -->\n"


def table(data: Mapping[str, Any]) -> str:
    """Return the results as markdown, a row per format and model."""
    lines = [
        "| format | model | bits K / V, 147 rows of 32 | bits K / V, 8,192 rows of 128 | bytes per "
        "token and layer, of fp16 | error K / V | right | same answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        here, long = row["bits"], data["long"][row["format"]]
        part = row["bytes_per_token_and_layer"] / row["fp16_bytes_per_token_and_layer"]
        raised = f" (finer: {row['raised']})" if row["raised"] else ""
        cells = [
            f"`{row['format']}`{raised}",
            row["model"],
            f"{here['key']:.2f} / {here['value']:.2f}",
            f"{long['key']:.2f} / {long['value']:.2f}",
            f"{row['bytes_per_token_and_layer']:.0f} ({part:.0%})",
            f"{row['error']['key']:.2%} / {row['error']['value']:.2%}",
            f"{row['right']:.3f}",
            f"{row['same_as_unstored']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    measured = f"\n{data['samples']} held-out questions a row; `{data['command']}`, {data['date']}."
    return "\n".join(lines) + "\n" + measured + "\n"


def write_page(made: str, start: str = START, end: str = END) -> None:
    """Put a table in its place."""
    before, _, rest = PAGE.read_text().partition(start)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{start}{made}{end}{after}")
