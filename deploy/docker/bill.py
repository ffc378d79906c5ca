"""Writes a bill of materials in CycloneDX JSON. It does not know where the list of packages comes from."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def write_bill(path: Path, image: str, packages: Mapping[str, str]) -> None:
    """Writes the packages of an image; the same packages give the same bytes.

    Args:
        path: the file.
        image: the image's name.
        packages: version by name.

    Raises:
        ValueError: the result would be no valid CycloneDX 1.6.
    """
    subject = Component(name=image, type=ComponentType.CONTAINER, bom_ref=image)
    bom = Bom(metadata=BomMetaData(component=subject))
    # Both would differ at each run: the number is made from the content instead, and the time is that of the commit.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    content = image + "".join(f"\n{name}=={version}" for name, version in sorted(packages.items()))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, content)
    for name, version in sorted(packages.items()):
        purl = PackageURL("pypi", None, name, version)
        component = Component(name=name, version=version, purl=purl, bom_ref=str(purl))
        bom.components.add(component)
        bom.register_dependency(subject, [component])
    text = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"{path.name} is no CycloneDX 1.6: {error}")
    path.write_text(text, encoding="utf-8")
