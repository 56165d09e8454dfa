"""Print a step-time result file as a Markdown table.

python benchmarks/table.py benchmarks/results/step_time_h100.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """One line a system; the spread is the 10th to the 90th percentile."""
    result = json.loads(Path(sys.argv[1]).read_text())
    where = result["environment"]
    print(f"{where['device']}, {where['date'][:10]}, torch {where['versions']['torch']}, ", end="")
    print(f"transformers {where['versions']['transformers']}, {where['threads']} threads; ", end="")
    print(f"matrix products at {result['matmul_flops_per_second'] / 1e12:,.3g} TFLOP/s\n")
    extra = any("tokens_per_second" in row for row in result["rows"])
    print("| model | rows | system | ms a step | 10-90 % | over floor | MFU |" + " tokens/s | of dense |" * extra)
    print("| --- | --- | --- | --- | --- | --- | --- |" + " --- | --- |" * extra)
    for row in result["rows"]:
        mfu = f"{row['mfu']:.0%}" if row["mfu"] else ""
        cells = [
            row["model"],
            row["shape"],
            row["system"],
            f"{row['median_ms']:.2f}",
            f"{row['p10_ms']:.2f}-{row['p90_ms']:.2f}",
            f"{row['over_floor']:.1f}",
            mfu,
        ]
        if extra:
            cells += [f"{row['tokens_per_second']:,.0f}", f"{row['time_ratio']:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
