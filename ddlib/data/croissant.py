"""A folder of images described in Croissant 1.1 (docs.mlcommons.org/croissant), for machines."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

CONTEXT = {
    "@vocab": "https://schema.org/",
    "@language": "en",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "recordSet": "cr:recordSet",
    "field": "cr:field",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "source": "cr:source",
    "extract": "cr:extract",
    "fileSet": "cr:fileSet",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "column": "cr:column",
    "includes": "cr:includes",
    "md5": "cr:md5",
}
FIELDS = {"file_name": "sc:Text", "class": "sc:Text", "label": "sc:Integer"}


def describe(title: str, licence: str, lines: bytes) -> bytes:
    """The JSON-LD of a folder whose train/metadata.jsonl holds these `lines`, one per image."""
    listing = {"@type": "cr:FileObject", "@id": "metadata", "name": "metadata.jsonl"}
    listing |= {"contentUrl": "train/metadata.jsonl", "encodingFormat": "application/jsonlines"}
    images = {"@type": "cr:FileSet", "@id": "images", "encodingFormat": "image/png"}

    def field(name: str, kind: str) -> dict[str, Any]:
        extract = {"fileObject": {"@id": "metadata"}, "extract": {"column": name}}
        about = {"@type": "cr:Field", "@id": f"examples/{name}", "name": name}
        return about | {"dataType": kind, "source": extract}

    content = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}}
    picture = {"@type": "cr:Field", "@id": "pictures/image", "name": "image"}
    whole = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": title,
        "description": "Synthetic images that stand for a whole training set.",
        "license": licence,
        "distribution": [
            listing | {"sha256": sha256(lines).hexdigest()},
            images | {"includes": "train/**/*.png"},
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "examples",
                "field": [field(name, kind) for name, kind in FIELDS.items()],
            },
            {
                "@type": "cr:RecordSet",
                "@id": "pictures",
                "field": [picture | {"dataType": "sc:ImageObject", "source": content}],
            },
        ],
    }
    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()
