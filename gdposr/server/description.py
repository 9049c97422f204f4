"""The texts of the OpenAPI description, and that description as a page without scripts."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

# Texts of the whole interface and of its one route.
ABOUT: Final = (
    "A photo in, pictures four times larger out. The same photo, query and model give the same bytes, those of the command "
    '`gdposr upscale`. Errors are JSON, `{"error": "what was expected, what came, and the remedy"}`.'
)
UPSCALE: Final = "Enlarge the photo in the body"
# The body of a request.
BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "the bytes of the photo's file: PNG, JPEG, TIFF, WebP, BMP, GIF, PPM or AVIF, found by its content",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
# Content of an answer: a file, or an error as JSON.
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_ERROR: Final[dict[str, Any]] = {
    "application/json": {
        "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    }
}
# What each status means.
_ERRORS: Final = {
    408: "The photo came too slowly",
    413: "The photo has too many bytes",
    415: "The body is a form",
    422: "The photo cannot be read or has too many pixels, or the query is wrong",
    429: "The queue is full; Retry-After says for how long",
    503: "Too long in the queue, no memory or space, or the server is being stopped; Retry-After says when to try again",
    504: "The pictures took too long",
}
# The answers by status.
ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The picture, or with `samples` from two on a zip of pictures. The header Gdposr-Notes, a JSON list, tells "
        "of losses such as 16 bits in a JPEG",
        "content": dict.fromkeys(("image/png", "image/jpeg", "image/webp", "application/zip"), _BINARY),
    },
    **{status: {"description": text, "content": _ERROR} for status, text in _ERRORS.items()},
}
# Content-Security-Policy of the page: it loads nothing and runs no script.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE: Final = (
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0}pre{overflow:auto}"
)


def page(description: dict[str, Any]) -> str:
    """An OpenAPI description as HTML. It loads nothing."""
    info = description["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p>",
        "<pre>curl --data-binary @photo.jpg 'ADDRESS/v1/upscale?seed=3' -o photo_large.png</pre>",
        '<p>For programs that write clients: <a href="openapi.json">openapi.json</a></p>',
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation['summary'])}</p>")
            if "requestBody" in operation:
                parts.append(f"<p>Body: {escape(operation['requestBody']['description'])}</p>")
            rows = [
                (each["name"], each.get("description", ""), _range(each["schema"]))
                for each in operation.get("parameters", [])
            ]
            parts.append(_table(("query", "", "values"), rows))
            rows = [
                (status, each["description"], ", ".join(each.get("content", {})))
                for status, each in operation["responses"].items()
            ]
            parts.append(_table(("status", "", "type"), rows))
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>gdposr</title><style>{_STYLE}</style>{"".join(parts)}</html>'


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _range(schema: dict[str, Any]) -> str:
    """The values of a parameter in a few words, with its default."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "enum" in kind:
        text = ", ".join(map(str, kind["enum"]))
    else:
        low, high = kind.get("minimum", kind.get("exclusiveMinimum")), kind.get("maximum")
        bounds = [f"{word} {bound}" for word, bound in (("from", low), ("to", high)) if bound is not None]
        text = " ".join([kind["type"], *bounds])
    return text + (f" (default: {schema['default']})" if schema.get("default") is not None else "")
