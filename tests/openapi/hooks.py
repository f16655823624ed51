"""Owns what the OpenAPI document cannot say of what may be sent: which ids, tokens and
states there are. Most requests get genuine ones, so that they come further than a 404.

Never: leaves out a case because the server answers it wrongly.
"""

import collections
import datetime
import json
import os
import re
import time
import urllib.request

import schemathesis
from hypothesis import strategies as st

BASE = os.environ["ROOST_URL"]
KEY = os.environ["ROOST_KEY"]
# What the agent of the first host was answered when it registered.
AGENT = json.loads(os.environ["ROOST_AGENT"])
HOST = AGENT["host"]["id"]
# A capsule there that only reports are about, and one that only is looked at.
REPORTED, STANDING = os.environ["ROOST_CAPSULES"].split()

# An id is a 128-bit number; the pattern of 25 digits says a little more than that.
TOO_LARGE = re.compile(r"^(host|cl|team|tmpl|key|log)-[f-z][0-9a-z]{24}$")
ID = re.compile(r"\b(?:host|cl|key)-[0-9a-z]{25}\b")

# One in so many requests keeps what was made up: the answer to who is not there.
MADE_UP = 4
# Longest wait for a capsule, in seconds. Larger: a server that hangs is found later.
PATIENCE_S = 20

# Times are in UTC, which `date-time` does not say.
schemathesis.openapi.format(
    "date-time",
    st.datetimes(min_value=datetime.datetime(1970, 1, 1)).map(
        lambda at: at.replace(microsecond=0).isoformat() + "Z"
    ),
)
schemathesis.openapi.format("agent-address", st.integers(1, 9).map(lambda port: f"127.0.0.1:{port}"))


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"X-API-Key": KEY}, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.loads(answer.read() or "null")


def capsule(status):
    """A capsule of the fleet in this status, made when there is none to spare."""
    found = [one["id"] for one in ask("GET", f"/v1/capsules?host_id={HOST}&status={status}")]
    spare = [one for one in found if one not in (REPORTED, STANDING)]
    if spare:
        return spare[0]
    if status == "running":
        return until(ask("POST", "/v1/capsules", {"memory_mb": 1})["id"], status)
    one = capsule("running")
    ask("POST", f"/v1/capsules/{one}/pause")
    return until(one, status)


def until(one, status):
    end = time.monotonic() + PATIENCE_S
    while (is_now := ask("GET", f"/v1/capsules/{one}")["status"]) != status:
        assert time.monotonic() < end, f"{one} is {is_now}, not {status}"
        time.sleep(0.01)
    return one


def new_host():
    return ask("POST", "/v1/hosts", {})


# A host of its own for every request that would end what others need.
def lost_host():
    return new_host()["host"]["id"]


def new_snapshot():
    return ask("POST", "/v1/snapshots", {"sandbox_id": capsule("running")})["name"]


def new_template():
    return ask("POST", "/v1/templates", {"name": f"lost-{time.monotonic_ns()}"})["id"]


# Whose name or id each operation on a template gets, now and then: a snapshot takes its time.
TEMPLATES = {"deleteSnapshot": new_snapshot, "removeTemplate": new_template}
# Whose id each operation gets.
GENUINE = {
    "getHost": lambda: HOST,
    "previewHostDeletion": lambda: HOST,
    "probeHost": lambda: HOST,
    "heartbeat": lambda: HOST,
    "beginMaintenance": lambda: HOST,
    "endMaintenance": lambda: HOST,
    "deleteHost": lost_host,
    "renewRegistrationToken": lost_host,
    "drainHost": lost_host,
    "undrainHost": lost_host,
    "setHostOffline": lost_host,
    "getCapsule": lambda: STANDING,
    "pingCapsule": lambda: STANDING,
    "pauseCapsule": lambda: capsule("running"),
    "resumeCapsule": lambda: capsule("paused"),
    "destroyCapsule": lambda: capsule("running"),
    "revokeKey": lambda: ask("POST", "/v1/api-keys", {"name": "lost"})["api_key"]["id"],
}
asked = collections.Counter()
given_out = set()


def name(operation):
    return operation.definition.raw["operationId"]


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = name(case.operation)
    asked[operation] += 1
    one = (case.path_parameters or {}).get("id")
    if isinstance(one, str) and TOO_LARGE.match(one):
        one = case.path_parameters["id"] = in_range(one)
    if operation in GENUINE and isinstance(one, str) and ID.fullmatch(one):
        # What the server gave out is followed, but nobody ends what others need.
        is_needed = one in (HOST, REPORTED, STANDING)
        is_made_up = one not in given_out and asked[operation] % MADE_UP
        if is_needed or is_made_up:
            case.path_parameters["id"] = GENUINE[operation]()
    if operation in TEMPLATES and not asked[operation] % MADE_UP and is_positive(case):
        case.path_parameters["id"] = TEMPLATES[operation]()
    if is_positive(case) and isinstance(case.body, dict):
        case.body = genuine(operation, case.body)
        if operation == "registerAgent" and asked[operation] % MADE_UP:
            case.body["token"] = new_host()["registration_token"]


@schemathesis.hook
def after_call(context, case, response):
    if case.method == "POST" and response.status_code in (201, 202):
        given_out.update(ID.findall(response.text))
        # Nobody listens there; nothing is to be placed on it.
        if name(case.operation) == "registerAgent":
            ask("DELETE", f"/v1/hosts/{response.json()['host']['id']}?force=true")


def is_positive(case):
    return case.meta and case.meta.generation.mode.is_positive


def genuine(operation, body):
    if operation == "reportSandboxEvent" and ID.fullmatch(str(body.get("host_id"))):
        body = {**body, "host_id": HOST}
        if asked[operation] % MADE_UP:
            body["sandbox_id"] = REPORTED
    if operation == "refreshAgent" and asked[operation] % MADE_UP and isinstance(body.get("refresh_token"), str):
        body = {**body, "refresh_token": AGENT["refresh_token"]}
    if operation == "createCapsule" and "template" in body and asked[operation] % MADE_UP:
        body = {**body, "template": "minimal"}
    if operation == "addTemplate":
        body = {**body, "hosts": [HOST for _ in body.get("hosts") or []]}
        if asked[operation] % MADE_UP:
            body["name"] = f"n{asked[operation]}"
    if operation == "createSnapshot" and not asked[operation] % MADE_UP and isinstance(body.get("sandbox_id"), str):
        body = {**body, "sandbox_id": capsule("running")}
    return body


def in_range(value):
    if isinstance(value, str) and TOO_LARGE.match(value):
        prefix, digits = value.split("-", 1)
        return f"{prefix}-0{digits[1:]}"
    if isinstance(value, dict):
        return {name: in_range(inner) for name, inner in value.items()}
    return value


@schemathesis.hook
def before_load_schema(context, raw_schema):
    # The last page has no next one, which schemathesis takes for a broken link.
    del raw_schema["paths"]["/v1/audit"]["get"]["responses"]["200"]["links"]["next"]


@schemathesis.hook
def map_query(context, query):
    return in_range(query) if query else query


@schemathesis.hook
def map_body(context, body):
    body = in_range(body)
    # What is wrong otherwise is to be seen, so it is this host that says it.
    if name(context.operation) == "reportSandboxEvent" and isinstance(body, dict) and "host_id" in body:
        body["host_id"] = HOST
    return body


@schemathesis.check
def not_unavailable(ctx, response, case):
    """A healthy server is never unavailable, whatever is asked."""
    if response.status_code == 503:
        code = response.json()["error"]["code"]
        assert code != "unavailable", f"503 of a healthy server: {response.text}"


@schemathesis.check
class EverythingSucceeds:
    """Each operation succeeded at least once: what was tried was not only refused. There are
    no strangers here."""

    def __init__(self):
        self.asked, self.succeeded = set(), set()

    def after_response(self, ctx, response, case):
        self.asked.add(case.operation.label)
        if response.status_code < 300:
            self.succeeded.add(case.operation.label)

    def after_run(self, ctx):
        never = sorted(label for label in self.asked - self.succeeded if "/v1/strangers/{id}" not in label)
        assert len(self.asked) > 30 and not never, f"of {len(self.asked)}, never succeeded: {never}"


@schemathesis.auth()
class Credentials:
    """The operator's key, and a host's token where an agent asks."""

    def get(self, case, context):
        return KEY, AGENT["token"]

    def set(self, case, data, context):
        key, token = data
        case.headers = case.headers or {}
        names = {name for need in case.operation.definition.raw.get("security", [{"AdminKey": []}]) for name in need}
        if "HostToken" in names:
            case.headers["X-Host-Token"] = token
        elif names:
            case.headers["X-API-Key"] = key
