"""Watches a cluster's nodes while a command runs, and logs nodes that join, do not answer or are gone."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raykd.common.late import Late

if TYPE_CHECKING:
    import ray
else:
    ray = Late("ray")


log = logging.getLogger(__name__)
_EVERY, _PATIENCE = 5.0, 3.0  # seconds between two checks, and for a node to answer one
_AT_ONCE = 32
_PREEMPTED, _IDLE = 3, 4  # of Ray's NodeDeathInfo.Reason: AUTOSCALER_DRAIN_PREEMPTED, AUTOSCALER_DRAIN_IDLE


@contextmanager
def watched() -> Iterator[None]:
    """Log changes of nodes, which Ray does not: it takes about a minute to give up a node that lost its network."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended,), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(ended: threading.Event) -> None:
    known, headless = _alive(), False
    silent: dict[str, float] = {}  # since when
    with ThreadPoolExecutor(_AT_ONCE) as executor:
        while not ended.wait(_EVERY):
            try:
                nodes, headless = {node["NodeID"]: node for node in ray.nodes()}, False
                now = {number: node for number, node in nodes.items() if node["Alive"]}
            except Exception as error:  # calls that need the head raise their own errors if it stays away
                if not headless:
                    log.warning("Ray's head does not answer (%s)", type(error).__name__)
                headless = True
                continue
            for node in now.keys() - known.keys():
                log.info("node %s has joined", _shown(now[node]))
            for node in known.keys() - now.keys():
                reason = nodes.get(node, {}).get("DeathReason")
                if reason == _IDLE:
                    log.info("node %s was idle, so the autoscaler has removed it", _shown(known[node]))
                else:
                    preempted = "was preempted" if reason == _PREEMPTED else "is gone"
                    log.warning("node %s %s; its work is restarted on other nodes", _shown(known[node]), preempted)
                silent.pop(node, None)
            known = now
            for node, answers in zip(now, executor.map(_answers, now.values()), strict=True):
                if not answers and node not in silent:
                    silent[node] = time.monotonic()
                    log.warning("node %s does not answer; Ray waits for it", _shown(now[node]))
                elif answers and node in silent:
                    since = time.monotonic() - silent.pop(node)
                    log.warning("node %s answers again, after %.0f s", _shown(now[node]), since)


def _alive() -> dict[str, dict[str, Any]]:
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _answers(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def _shown(node: dict[str, Any]) -> str:
    """A node's address and labels."""
    labels = ", ".join(own_labels(node.get("Labels", {})))
    return f"{node['NodeManagerAddress']} ({labels})" if labels else str(node["NodeManagerAddress"])


def own_labels(labels: Mapping[str, str]) -> list[str]:
    """The labels that users set, as key=value, without Ray's own."""
    return [f"{key}={value}" for key, value in sorted(labels.items()) if not key.startswith("ray.io/")]
