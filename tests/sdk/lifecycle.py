"""Owns what users of the Python SDK do with capsules from outside, one function each.

Never: looks at an answer itself; the SDK does. Waits only where the SDK does, or for a status
with a deadline that only a hung server reaches.
"""

import asyncio
import importlib.metadata
import logging
import os
import time
import traceback

import wrenn
from wrenn import AsyncCapsule, AsyncWrennClient, Capsule, WrennClient
from wrenn.models import Status

# What 0.1.2 calls without asking to wait is done when it returns; newer versions can wait.
CAN_WAIT = os.environ["SDK_VERSION"] != "0.1.2"
WAIT = {"wait": True} if CAN_WAIT else {}
PATIENCE_S = 60


def until(fetch, *statuses):
    end = time.monotonic() + PATIENCE_S
    while (info := fetch()).status not in statuses:
        assert time.monotonic() < end, f"{info} is none of {statuses}"
        time.sleep(0.02)
    return info


def refused(error, code, status, call):
    try:
        call()
    except wrenn.WrennError as found:
        assert isinstance(found, error), f"{found!r} is no {error}"
        assert (found.code, found.status_code) == (code, status), (found.code, found.status_code)
        return found
    raise AssertionError(f"not refused with {code}")


def the_right_version():
    found = importlib.metadata.version("wrenn")
    assert found == os.environ["SDK_VERSION"], found


def a_capsule_lives():
    capsule = Capsule(vcpus=1, memory_mb=256, timeout=300, wait=True)
    assert capsule.is_running()
    info = capsule.info
    assert (info.vcpus, info.memory_mb, info.timeout_sec, info.template) == (1, 256, 300, "minimal")
    assert info.created_at and info.started_at and info.last_updated
    capsule.ping()
    assert capsule.get_info().last_active_at is not None
    assert capsule.pause(**WAIT).status == Status.paused
    assert not capsule.is_running()
    assert capsule.resume(**WAIT).status == Status.running
    capsule.destroy(**WAIT)
    until(capsule.get_info, Status.stopped)
    # The SDK destroys again when an answer was lost, and at the end of `with`.
    capsule.destroy()


def without_waiting():
    """What the SDK does not wait for is still one of its statuses."""
    capsule = Capsule.create()
    assert capsule.info.status in (Status.starting, Status.running)
    until(capsule.get_info, Status.running)
    assert capsule.pause().status is not None
    until(capsule.get_info, Status.paused)
    assert capsule.resume().status is not None
    until(capsule.get_info, Status.running)
    capsule.destroy()


def by_id():
    capsule = Capsule(wait=True)
    name = capsule.capsule_id
    assert Capsule.pause(name, **WAIT).status == Status.paused
    assert Capsule.get_info(name).status == Status.paused
    assert Capsule.resume(name, **WAIT).status == Status.running
    Capsule.destroy(name, **WAIT)
    until(lambda: Capsule.get_info(name), Status.stopped)


def connected():
    capsule = Capsule(wait=True)
    assert Capsule.connect(capsule.capsule_id).is_running()
    capsule.pause(**WAIT)
    again = Capsule.connect(capsule.capsule_id)
    assert again.capsule_id == capsule.capsule_id and again.is_running(), "it was resumed"
    again.destroy()


def listed():
    made = [Capsule(wait=True).capsule_id for _ in range(3)]
    ids = [one.id for one in Capsule.list()]
    assert [one for one in ids if one in made] == made[::-1], "the newest first"
    for name in made:
        Capsule.destroy(name)
    until_gone(made)


def until_gone(names):
    end = time.monotonic() + PATIENCE_S
    while {one.id for one in Capsule.list()} & set(names):
        assert time.monotonic() < end, "still listed"
        time.sleep(0.02)


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


def in_a_context():
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    with Capsule(wait=True) as capsule:
        assert capsule.is_running()
    until(lambda: Capsule.get_info(capsule.capsule_id), Status.stopped)
    with Capsule(wait=True) as capsule:
        capsule.destroy(**WAIT)
        until(capsule.get_info, Status.stopped)
    assert warnings.found == [], warnings.found
    logging.getLogger().removeHandler(warnings)


def a_client_of_its_own():
    with WrennClient() as client:
        made = client.capsules.create(memory_mb=128)
        until(lambda: client.capsules.get(made.id), Status.running)
        client.capsules.pause(made.id)
        until(lambda: client.capsules.get(made.id), Status.paused)
        client.capsules.resume(made.id)
        until(lambda: client.capsules.get(made.id), Status.running)
        client.capsules.ping(made.id)
        assert made.id in [one.id for one in client.capsules.list()]
        client.capsules.destroy(made.id)
        assert any(one.name == "minimal" for one in client.snapshots.list())


def async_too():
    async def live():
        capsule = await AsyncCapsule.create(memory_mb=128, wait=True)
        assert await capsule.is_running()
        await capsule.ping()
        assert (await capsule.pause(**WAIT)).status == Status.paused
        again = await AsyncCapsule.connect(capsule.capsule_id)
        assert await again.is_running()
        assert capsule.capsule_id in [one.id for one in await AsyncCapsule.list()]
        await again.destroy()
        async with await AsyncCapsule.create(wait=True) as capsule:
            assert await capsule.is_running()
        async with AsyncWrennClient() as client:
            made = await asyncio.gather(*(client.capsules.create() for _ in range(8)))
            assert len({one.id for one in made}) == 8
            await asyncio.gather(*(client.capsules.destroy(one.id) for one in made))
        return [capsule.capsule_id, *(one.id for one in made)]

    until_gone(asyncio.run(live()))


def what_is_refused_says_why():
    unknown = "cl-0000000000000000000000009"
    refused(wrenn.WrennNotFoundError, "not_found", 404, lambda: Capsule.get_info(unknown))
    refused(wrenn.WrennNotFoundError, "not_found", 404, lambda: Capsule.destroy(unknown))
    refused(wrenn.WrennNotFoundError, "not_found", 404, lambda: Capsule.connect(unknown))
    refused(wrenn.WrennValidationError, "invalid_request", 400, lambda: Capsule(vcpus=0))
    refused(wrenn.WrennValidationError, "invalid_request", 400, lambda: Capsule(timeout=-1))
    wrong = lambda: Capsule(api_key="roost_wrong")
    refused(wrenn.WrennAuthenticationError, "unauthorized", 401, wrong)
    refused(wrenn.WrennError, "template_not_found", 404, lambda: Capsule(template="none-such"))
    refused(wrenn.WrennError, "no_hosts_available", 503, lambda: Capsule(memory_mb=2**30))
    with Capsule(wait=True) as capsule:
        refused(wrenn.WrennConflictError, "invalid_state", 409, capsule.resume)
        capsule.pause(**WAIT)
        refused(wrenn.WrennConflictError, "invalid_state", 409, capsule.pause)
        refused(wrenn.WrennConflictError, "invalid_state", 409, capsule.ping)


def what_is_missing_is_no_answer():
    with Capsule(wait=True) as capsule:
        with WrennClient() as client:
            calls = [
                lambda: capsule.commands.run("true"),
                lambda: capsule.files.exists("/etc/passwd"),
                lambda: capsule.files.list("/"),
                lambda: capsule.files.read("/etc/passwd"),
                lambda: capsule.commands.list(),
            ]
            if CAN_WAIT:
                calls += [
                    lambda: client.capsules.stats(),
                    lambda: client.capsules.usage(),
                    lambda: client.capsules.metrics(capsule.capsule_id),
                    lambda: next(iter(client.events.stream())),
                ]
            for call in calls:
                refused(wrenn.WrennError, "not_implemented", 501, call)


def main():
    for check in [
        the_right_version,
        a_capsule_lives,
        without_waiting,
        by_id,
        connected,
        listed,
        in_a_context,
        a_client_of_its_own,
        async_too,
        what_is_refused_says_why,
        what_is_missing_is_no_answer,
    ]:
        try:
            check()
        except BaseException:
            traceback.print_exc()
            raise SystemExit(f"{check.__name__} failed")
    until_gone([one.id for one in Capsule.list()])


main()
