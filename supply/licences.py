"""List the licences of everything that `pip install earlybert` brings, and fail on one that is not permissive.

python supply/licences.py > docs/licences.md       # from the environment it runs in
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

PERMISSIVE = re.compile(
    r"\b(?:MIT|BSD|Apache|PSF|Python Software Foundation|ISC|HPND|Unlicense|Zlib|0BSD|MPL|Mozilla|public domain)\b",
    flags=re.IGNORECASE,
)
"""MPL 2.0 (tqdm) is file-level copyleft: nothing of ours is touched by using it unchanged."""
COPYLEFT = re.compile(r"\b(?:A?GPL|LGPL)|General Public|SSPL|proprietary", flags=re.IGNORECASE)


def licence(package: Distribution) -> str:
    """What its metadata say, in a line."""
    said = package.metadata.get("License-Expression") or ""
    if not said:
        classifiers = package.metadata.get_all("Classifier") or []
        said = ", ".join(c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::"))
    if said in ("", "OSI Approved"):
        said = ((package.metadata.get("License") or "").strip().splitlines() or [""])[0]
    return " ".join(said.split())


def closure(name: str) -> dict[str, Distribution]:
    """Every distribution that `name` needs without extras, as installed here, itself left out."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        for requirement in distribution(waiting.pop()).requires or []:
            if "extra ==" in requirement:
                continue
            needed = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
            if needed in found:
                continue
            try:
                found[needed] = distribution(needed)
            except PackageNotFoundError:  # for another platform or Python
                continue
            waiting.append(needed)
    return found


def permissive(said: str) -> bool:
    """Whether a licence asks for no more than its notice."""
    return bool(PERMISSIVE.search(said)) and not COPYLEFT.search(said)


def main() -> int:
    """Print the page; 1 when a licence is not permissive."""
    packages = dict(sorted(closure("earlybert").items()))
    lines = [
        "# Licences of what earlybert needs",
        "",
        "What installing earlybert brings and what its metadata say (`python supply/licences.py` writes this page",
        "from an environment and fails on a licence that is not permissive). The wheels of torch for CUDA also bring",
        "NVIDIA's libraries, which have a licence of their own.",
        "",
        "| package | version | licence |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {package.version} | {licence(package)} |" for name, package in packages.items()]
    print("\n".join(lines))
    wrong = [
        f"{name}: {licence(package) or 'none named'}"
        for name, package in packages.items()
        if not permissive(licence(package))
    ]
    for line in wrong:
        print(f"not known to be permissive: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
