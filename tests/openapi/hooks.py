"""Owns what the OpenAPI document cannot say of what may be sent.

Never: leaves out a case because the server answers it wrongly.
"""

import datetime
import os
import re

import schemathesis
from hypothesis import strategies as st

# An id is a 128-bit number; the pattern of 25 digits says a little more than that.
TOO_LARGE = re.compile(r"^(host|cl|team|key|log)-[g-z][0-9a-z]{24}$|^(host|cl|team|key|log)-f[0-9a-z]{24}$")

# Times are in UTC, which `date-time` does not say.
schemathesis.openapi.format(
    "date-time",
    st.datetimes(min_value=datetime.datetime(1970, 1, 1)).map(
        lambda at: at.replace(microsecond=0).isoformat() + "Z"
    ),
)
schemathesis.openapi.format("agent-address", st.integers(1, 9).map(lambda port: f"127.0.0.1:{port}"))


def in_range(value):
    if isinstance(value, str) and TOO_LARGE.match(value):
        prefix, digits = value.split("-", 1)
        return f"{prefix}-0{digits[1:]}"
    if isinstance(value, dict):
        return {name: in_range(inner) for name, inner in value.items()}
    return value


@schemathesis.hook
def map_query(context, query):
    return in_range(query) if query else query


@schemathesis.hook
def map_body(context, body):
    return in_range(body)


@schemathesis.auth()
class Credentials:
    """The operator's key, and a host's token where an agent asks."""

    def get(self, case, context):
        return os.environ["ROOST_KEY"], os.environ["ROOST_HOST_TOKEN"]

    def set(self, case, data, context):
        key, token = data
        case.headers = case.headers or {}
        names = {name for need in case.operation.definition.raw.get("security", [{"AdminKey": []}]) for name in need}
        if "HostToken" in names:
            case.headers["X-Host-Token"] = token
        elif names:
            case.headers["X-API-Key"] = key
