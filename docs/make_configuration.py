"""Writes docs/configuration.md from the settings classes of the servers, or checks that the committed page is theirs.

It knows no setting: names, defaults and descriptions are the classes' own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from halfreel_gateway.settings import GatewaySettings
from halfreel_llm.settings import LlmSettings
from halfreel_runtime.settings import ServerSettings, describe
from halfreel_video.settings import VideoSettings

PAGE = Path(__file__).with_name("configuration.md")
SERVICES: dict[str, type[ServerSettings]] = {"llm": LlmSettings, "video": VideoSettings, "gateway": GatewaySettings}
HEAD = """\
# Configuration

Every server reads its settings from a YAML file (`--config FILE`, or `HALFREEL_<SERVICE>_CONFIG`), then from the
environment, then from flags; the later wins. A name that is not a setting is refused, wherever it stands, with the
nearest right one. `halfreel-llm --help`, `halfreel-video --help` and `halfreel-gateway --help` say what stands here.

This page is written by `make fix` from the servers' own classes, and `make verify` fails when it is not theirs.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD]
    for service, cls in SERVICES.items():
        rows = [
            f"| `{doc.name}` | {doc.type.replace('|', ' or ')} | `{doc.default}` | {doc.unit or '-'} "
            f"| {doc.description.replace('|', ' or ')} |"
            for doc in describe(cls, service)
        ]
        parts.append(
            f"\n## {service}\n\nIn the environment: `HALFREEL_{service.upper()}_` and the name in capitals; as a flag: "
            "`--` and the name with dashes.\n\n"
            "| setting | type | default | unit | what it does |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "".join(parts)


def main() -> int:
    """Writes the page, or with --check only compares it."""
    parser = argparse.ArgumentParser(description="Writes docs/configuration.md from the servers' settings.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed page differs")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    sys.stderr.write("docs/configuration.md is not what the settings say: run 'make fix'\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
