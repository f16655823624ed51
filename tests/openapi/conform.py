"""Owns whether the answers of tests/golden are what docs/openapi.yaml says.

Never: asks a server. Fields that the document does not name are refused here, although
clients are told to expect them: somebody forgot to write them down.
"""

import json
import pathlib
import re
import sys

import jsonschema_rs
import yaml

ROOT = pathlib.Path(__file__).parents[2]
ID = "0000000000000000000000042"
STANDS_FOR = [
    (r"<(host|cl|key|log|team|tmpl|op)-\d+>", rf"\1-{ID}"),
    (r"<api-key-\d+>", "roost_" + "a" * 64),
    (r"<secret-\d+>", "a" * 64),
    (r"<time>", "2026-05-17T09:30:00.000Z"),
    (r"<jwt>", "e30.e30.e30"),
    (r'"<ms>"', "1"),
    (r"<suffix>", "abcd"),
]


def real(text):
    for name, value in STANDS_FOR:
        text = re.sub(name, value, text)
    return text


def closed(node, inside_all_of=False):
    """The same schema without room for fields that it does not name."""
    if isinstance(node, list):
        return [closed(inner, inside_all_of) for inner in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(inner, inside_all_of or key in ("allOf", "Error")) for key, inner in node.items()}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not inside_all_of:
        node.setdefault("additionalProperties", False)
    return node


DOCUMENT = closed(yaml.safe_load((ROOT / "docs/openapi.yaml").read_text()))


def is_valid(schema, value):
    whole = {**schema, "components": DOCUMENT["components"]}
    errors = jsonschema_rs.Draft202012Validator(whole, validate_formats=True).iter_errors(value)
    return [str(error) for error in errors]


def operation(method, path):
    """What the document says of a request; `None`: of no such path, `{}`: of no such method."""
    parts = path.split("?")[0].rstrip("/").split("/")
    found = []
    for pattern, item in DOCUMENT["paths"].items():
        wanted = pattern.rstrip("/").split("/")
        if len(wanted) == len(parts) and all(w in (p, "{id}") for w, p in zip(wanted, parts)):
            found.append((pattern.count("{"), item.get(method.lower(), {})))
    found.sort(key=lambda pair: pair[0])
    # What is written out is no id.
    fewest = [op for braces, op in found if braces == found[0][0]]
    return next((op for op in fewest if op), {} if found else None)


def complaints(method, path, status, headers, body):
    said = operation(method, path)
    if said is None or not said:
        expected, schema = ("404" if said is None else "405"), {"$ref": "#/components/schemas/Error"}
        return is_valid(schema, json.loads(body)) + ([] if status == expected else [f"{status}, not {expected}"])
    answer = said["responses"].get(status)
    if answer is None:
        return [f"{status} is not in the document"]
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].split("/")[-1]]
    wrong = unlike(answer.get("headers", {}), headers)
    content = answer.get("content", {})
    if not content:
        return wrong + ([f"has a body: {body}"] if body.strip() else [])
    kind = headers.get("content-type", "application/json")
    if kind not in content:
        return wrong + [f"{kind} is not in the document"]
    value = json.loads(body) if kind == "application/json" else body + "\n"
    return wrong + is_valid(content[kind]["schema"], value)


def unlike(said, headers):
    """What is wrong with these headers."""
    wrong = []
    for name, header in said.items():
        if "$ref" in header:
            header = DOCUMENT["components"]["headers"][header["$ref"].split("/")[-1]]
        value = headers.get(name)
        if value is None:
            wrong += [f"has no {name}"] if header.get("required") else []
        else:
            value = int(value) if header["schema"].get("type") == "integer" else value
            wrong += [f"{name}: {why}" for why in is_valid(header["schema"], value)]
    return wrong


def conversations(text):
    for block in re.findall(r"^> (\S+) (\S+)\n((?:>.*\n)*)< (\d+)\n((?:<.*\n)*)", text + "\n", re.M):
        method, path, _, status, answer = block
        lines = [line[2:] for line in answer.splitlines()]
        headers = {}
        while lines and (match := re.match(r"([a-z-]+): (.*)$", lines[0])):
            headers[match[1]] = match[2]
            lines.pop(0)
        yield method, path, status, headers, "\n".join(lines)


def main():
    wrong, seen = [], 0
    for file in sorted((ROOT / "tests/golden").glob("*.txt")):
        text = real(file.read_text())
        for method, path, status, headers, body in conversations(text):
            seen += 1
            wrong += [f"{file.name}: {method} {path} {status}: {why}" for why in complaints(method, path, status, headers, body)]
        for data in re.findall(r"^< data: (.*)$", text, re.M):
            seen += 1
            why = is_valid({"$ref": "#/components/schemas/Event"}, json.loads(data))
            wrong += [f"{file.name}: {data}: {one}" for one in why]
    if seen < 100:
        wrong.append(f"only {seen} answers found")
    print("\n".join(wrong) or f"{seen} answers conform")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
