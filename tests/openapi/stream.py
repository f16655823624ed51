"""Owns whether `/v1/events` of a running server answers as docs/openapi.yaml says: status,
headers, every event, and the refusals that only a stream has.

Never: waits for more events than the test has caused before.
"""

import http.client
import json
import os
import re
import sys

import conform

KEY = {"X-API-Key": os.environ["ROOST_KEY"]}
EVENTS = int(os.environ["ROOST_EVENTS"])
LARGEST = 2**63 - 1
wrong = []


def ask(query, headers):
    connection = http.client.HTTPConnection(os.environ["ROOST_ADDRESS"], timeout=30)
    connection.request("GET", "/v1/events" + query, headers=headers)
    answer = connection.getresponse()
    return answer, {name.lower(): value for name, value in answer.getheaders()}


def refused(status, query, headers):
    answer, told = ask(query, headers)
    said = [] if answer.status == status else [f"{answer.status}, not {status}"]
    body = answer.read(1 << 16) if answer.status != 200 else b""
    said += conform.complaints("GET", "/v1/events", str(answer.status), told, body.decode())
    wrong.extend(f"{query} {headers}: {why}" for why in said)
    return body


def fields(answer):
    """One event; comments are left out."""
    found = {}
    while (line := answer.readline().decode()) != "\n" or not found:
        assert line, "the stream ended"
        if match := re.fullmatch(r"(id|event|data): (.*)\n", line):
            found[match[1]] = match[2]
        elif not re.fullmatch(r"(:.*)?\n", line):
            wrong.append(f"neither a field nor a comment: {line!r}")
    return found


answer, told = ask("?after=0", KEY)
wrong += conform.complaints("GET", "/v1/events", str(answer.status), told, "")
if answer.status != 200:
    wrong.append(f"{answer.status}, not 200")
first = answer.readline()
if not first.startswith(b":"):
    wrong.append(f"begins with {first!r}, no comment")
for number in range(1, EVENTS + 1):
    event = fields(answer)
    data = json.loads(event["data"])
    wrong += conform.is_valid({"$ref": "#/components/schemas/Event"}, data)
    if (event["id"], event["event"]) != (str(data["revision"]), data["kind"]) or data["revision"] != number:
        wrong.append(f"event {number}: {event}")

# A revision that never was is no place to go on from, as parameter and as header.
for query, more in ((f"?after={LARGEST}", {}), ("", {"Last-Event-ID": str(LARGEST)}), ("?after=0", {"Last-Event-ID": str(LARGEST)})):
    body = json.loads(refused(410, query, {**KEY, **more}) or "{}")
    newest = body.get("error", {}).get("newest_revision", -1)
    if newest < EVENTS:
        wrong.append(f"{query} {more}: newest_revision is {newest}")
for query in ("?after=-1", "?after=one", f"?after={2**64}", "?host_id=one", "?sandbox_id=one"):
    refused(400, query, KEY)
refused(400, "", {**KEY, "Last-Event-ID": "one"})
refused(401, "", {})
refused(401, "", {"X-API-Key": "roost_" + "0" * 64})

print("\n".join(wrong) or "the stream conforms")
sys.exit(bool(wrong))
