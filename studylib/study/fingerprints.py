"""Hashes of settings, data and code, by which a result is known to be what would be made now."""

import ast
import hashlib
import json
from pathlib import Path

from pydantic import BaseModel

LIBRARY = Path(__file__).resolve().parents[1]


def digest(value) -> str:
    """Short hash of plain data or settings, equal for equal content."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest(*modules: str) -> str:
    """Hash of what the studylib modules named as `room/module` do, for fingerprints: comments, docstrings and layout do not count."""
    dumps = []
    for module in modules:
        tree = ast.parse((LIBRARY / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                node.body = body[1:]
        dumps.append(ast.dump(tree))
    return digest(dumps)
