"""Writes the alerts as a PrometheusRule for the Prometheus operator, or checks that the committed one is theirs.

They stand in deploy/prometheus/alerts.yml, with their tests. It does not know what they ask.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "alerts.yml"
MANIFEST = HERE / "base" / "alerts.yaml"
_HEAD = """\
# Written by deploy/kubernetes/alerts.py from deploy/prometheus/alerts.yml; `make fix` writes it again.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: halfreel
spec:
"""


def manifest(rules: str) -> str:
    """The text of a PrometheusRule whose spec is a rules file of Prometheus's, as it stands."""
    return _HEAD + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


def main() -> int:
    """Writes the file, or with --check only compares it."""
    parser = argparse.ArgumentParser(description="Writes the alerts as a PrometheusRule.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed file differs")
    wanted = manifest(RULES.read_text(encoding="utf-8"))
    if not parser.parse_args().check:
        MANIFEST.write_text(wanted, encoding="utf-8")
    elif not MANIFEST.exists() or MANIFEST.read_text(encoding="utf-8") != wanted:
        sys.stderr.write("deploy/kubernetes/base/alerts.yaml is not what alerts.yml says: run 'make fix'\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
