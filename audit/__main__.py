"""Known vulnerabilities of the packages in an environment, by pip-audit: `python audit PYTHON_OF_THE_ENVIRONMENT`.

Exit codes: 0 none is known, 1 there are some, 2 wrong usage, 3 it is not known, because no database could be asked or a
package was not found in it. pip-audit alone exits with 0 then, which would be taken for "none".
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

_TOOL = "pip-audit>=2.10,<3"
# Two databases, each behind a public address that a company's proxy may or may not let through.
_SERVICES = ("pypi", "osv")
_SECONDS = 10


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Exit code and what to say of one report of pip-audit in JSON."""
    found, unknown = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
        for flaw in package.get("vulns", ()):
            fixed = ", ".join(flaw.get("fix_versions") or ["none yet"])
            found.append(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    asked = len(report["dependencies"]) - len(unknown)
    lines = [*found, f"{asked} packages asked about, {len(found)} known vulnerabilities"]
    if unknown:
        lines.append(
            f"not known for {len(unknown)} packages, such as {', '.join(unknown[:3])}: the database has none of them"
        )
    return (1 if found else 3 if unknown or not asked else 0), "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Asks one database after the other until one of them knows."""
    if len(arguments) != 1:
        print("usage: python audit PYTHON", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="retinue-audit-") as folder:
        # An environment of its own: the tool's dependencies are not ours.
        tool = Path(folder) / "tool"
        venv.create(tool, with_pip=True)
        subprocess.run([tool / "bin" / "pip", "install", "--quiet", _TOOL], check=True)
        frozen = [arguments[0], "-m", "pip", "freeze", "--exclude-editable"]
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(subprocess.run(frozen, check=True, capture_output=True, text=True).stdout)
        code = 3
        for service in _SERVICES:
            code, text = _ask(tool, service, requirements, Path(folder) / f"{service}.json")
            print(f"{service}: {text}")
            if code != 3:
                break
    if code == 3:
        print("It is not known whether there are vulnerabilities: run this where a database can be reached.")
    return code


def _ask(tool: Path, service: str, requirements: Path, report: Path) -> tuple[int, str]:
    done = subprocess.run(
        [
            *(tool / "bin" / "pip-audit", "--vulnerability-service", service, "--timeout", str(_SECONDS)),
            *("--disable-pip", "--no-deps", "--requirement", requirements),
            *("--format", "json", "--output", report, "--progress-spinner", "off"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if not report.is_file():
        last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return 3, f"cannot be asked: {last[:300]}"
    return verdict(json.loads(report.read_text()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
