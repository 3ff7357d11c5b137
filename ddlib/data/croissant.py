"""A folder of images described in Croissant 1.1 (docs.mlcommons.org/croissant), for machines."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

TEMPLATE = Path(__file__).with_suffix(".json")


def describe(title: str, licence: str, lines: bytes) -> bytes:
    """The JSON-LD of a folder whose train/metadata.jsonl holds these `lines`, one per image."""
    whole = json.loads(TEMPLATE.read_text("utf-8")) | {"name": title, "license": licence}
    whole["distribution"][0]["sha256"] = sha256(lines).hexdigest()
    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()
