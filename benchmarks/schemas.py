"""Varied JSON schemas with bounded output, the same for a seed everywhere: records, nested lists, unions, recursion,
patterns, formats, enumerations, maps, numeric bounds. Used by `structured.py` and by the tests.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

WORDS = [
    "name",
    "id",
    "kind",
    "count",
    "price",
    "tags",
    "notes",
    "address",
    "city",
    "street",
    "zip",
    "country",
    "email",
    "phone",
    "created",
    "updated",
    "status",
    "level",
    "score",
    "items",
    "total",
    "currency",
    "owner",
    "author",
    "title",
    "body",
    "summary",
    "language",
    "version",
    "path",
    "size",
    "color",
    "shape",
    "width",
    "height",
    "depth",
    "weight",
    "latitude",
    "longitude",
    "altitude",
    "start",
    "end",
    "duration",
    "priority",
    "labels",
    "comments",
    "rating",
    "enabled",
    "visible",
    "archived",
]
PATTERNS = (
    r"^[A-Z]{2}-[0-9]{4}$",
    r"^(red|green|blue)$",
    r"^[a-z][a-z0-9_]{0,15}$",
    r"^\d{3}-\d{4}$",
    r"^#[0-9a-f]{6}$",
    r"^v[0-9]{1,2}\.[0-9]{1,2}(\.[0-9]{1,3})?$",
    r"^[\w.]{1,12}@[a-z]{2,8}\.(com|org|net)$",
)
FORMATS = ("date", "date-time", "time", "uuid", "ipv4")


class Maker:
    """Makes schemas; what they allow grows with the depth left."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.defs: Schema = {}

    def schema(self) -> Schema:
        """A schema whose root is an object or, sometimes, a list."""
        rng = self.rng
        if rng.random() < 0.15:
            self.defs["node"] = self.node()
        root = self.object(3) if rng.random() < 0.85 else self.array(3)
        if self.defs and root["type"] == "object":
            root["properties"]["tree"] = {"$ref": "#/$defs/node"}
            root["required"].append("tree")
        return {**root, "$defs": self.defs} if self.defs else root

    def value(self, depth: int) -> Schema:
        """Anything."""
        leaves = [self.string, self.string, self.integer, self.number, self.enum, self.boolean]
        branches = [self.object, self.array, self.union, self.map] if depth > 0 else []
        made = self.rng.choice(leaves + branches)(depth - 1)
        if self.rng.random() < 0.2:
            made["description"] = f"The {self.rng.choice(WORDS)}."
        return made

    def object(self, depth: int) -> Schema:
        """A record, some of it optional."""
        names = self.rng.sample(WORDS, self.rng.randint(1, 5))
        required = [name for name in names if self.rng.random() < 0.7]
        return {
            "type": "object",
            "properties": {name: self.value(depth) for name in names},
            "required": required,
            "additionalProperties": False,
        }

    def array(self, depth: int) -> Schema:
        """A list, or a tuple."""
        if self.rng.random() < 0.2:
            parts = [self.value(depth) for _ in range(self.rng.randint(1, 3))]
            return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        least = self.rng.randint(0, 2)
        most = least + self.rng.randint(0, 2)
        return {"type": "array", "items": self.value(depth), "minItems": least, "maxItems": most}

    def union(self, depth: int) -> Schema:
        """One of several; told apart by their kind where they are records."""
        if self.rng.random() < 0.5:
            return {"anyOf": [self.string(0), {"type": "null"}, self.integer(0)]}
        kinds = self.rng.sample(WORDS, 2)
        parts = []
        for kind in kinds:
            part = self.object(depth)
            part["properties"] = {"type": {"const": kind}, **part["properties"]}
            part["required"] = ["type", *part["required"]]
            parts.append(part)
        return {"oneOf": parts}

    def map(self, depth: int) -> Schema:
        """Names that are not known before."""
        keys = {"^[a-z]{1,8}$": self.value(min(depth, 0))}
        most = self.rng.randint(1, 3)
        return {"type": "object", "patternProperties": keys, "additionalProperties": False, "maxProperties": most}  # fmt: skip

    def node(self) -> Schema:
        """A tree, as deep as the model likes."""
        more = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}
        return {
            "type": "object",
            "properties": {"v": self.integer(0), "more": more},
            "required": ["v"],
            "additionalProperties": False,
        }

    def string(self, _: int) -> Schema:
        """Free text, a pattern or a format."""
        kind = self.rng.random()
        if kind < 0.2:
            return {"type": "string", "pattern": self.rng.choice(PATTERNS)}
        if kind < 0.35:
            return {"type": "string", "format": self.rng.choice(FORMATS)}
        return {"type": "string", "maxLength": self.rng.choice((8, 20, 40, 80))}

    def integer(self, _: int) -> Schema:
        """Within bounds."""
        low = self.rng.choice((-100, 0, 1, 18))
        return {"type": "integer", "minimum": low, "maximum": low + self.rng.choice((9, 99, 65535))}

    def number(self, _: int) -> Schema:
        """With steps or without, but within bounds."""
        made: Schema = {"type": "number", "minimum": 0, "maximum": self.rng.choice((1, 100, 5000))}
        if self.rng.random() < 0.6:
            made["multipleOf"] = self.rng.choice((0.5, 0.25, 0.01))
        return made

    def enum(self, _: int) -> Schema:
        """Strings, or values of several types."""
        words: list[Any] = self.rng.sample(WORDS, self.rng.randint(2, 12))
        return {"enum": [*words, None, 7] if self.rng.random() < 0.2 else words}

    def boolean(self, _: int) -> Schema:
        """True or false."""
        return {"type": "boolean"}


def schemas(count: int) -> list[Schema]:
    """The first `count` schemas."""
    return [Maker(seed).schema() for seed in range(count)]
