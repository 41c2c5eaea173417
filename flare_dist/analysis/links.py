"""Project how long a round would take on another link.

The model of a link: every rank (or, in a star, every client) has one link of `rate` bits a second and `latency`
seconds. A full-duplex link sends and receives at once, a half-duplex link one after the other. A shared link is a
medium on which all ranks take turns, as on a loopback device whose rate is limited. Nothing is added for headers of
protocols. Among W ranks a collective of B bytes on the wire moves B / W through each link in each direction, in W - 1
steps that each wait for the latency. In a star, clients work in parallel: each receives its part of the downlink and
then sends its part of the uplink and of the buffers. Of the clients that a process trained in turn the slowest counts
(slowest_client_seconds); logs without it give the sum.

The time of a round beside communication is taken from the log as it is. If buckets were sent during backward
(mode: gradient on a CPU; only metrics.jsonl has their times), each bucket starts when it is ready and the one before
has arrived. The wait for the last bucket stays in: on a fast link that is the time to unpack it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

DUPLEX = ("full", "half", "shared")
TOPOLOGIES = ("ranks", "star")
PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Link:
    """Describe a link by its rate, its latency and who may send when."""

    text: str  # as the user wrote it
    rate: float  # bits a second
    latency: float = 0.0  # seconds
    duplex: str = "full"  # one of DUPLEX

    @staticmethod
    def parse(text: str, option: str = "--link") -> Link:
        """Parse RATE[/LATENCY][/DUPLEX], e.g. 100Mbps, 1Gbps/20ms or 10MBps/30ms/half; else raise.

        ValueError names the `option`.
        """
        rate, *options = text.split("/")
        latencies = [seconds for seconds in map(_seconds, options) if seconds is not None]
        duplex = [option for option in options if option in DUPLEX]
        bits = _bits(rate)
        if not bits or len(latencies) > 1 or len(duplex) > 1 or len(latencies) + len(duplex) < len(options):
            raise ValueError(f"{option}: expected RATE[/LATENCY][/full|half|shared], e.g. 1Gbps/20ms, got {text!r}")
        return Link(text, bits, sum(latencies), duplex[0] if duplex else "full")

    def seconds(self, wire_bytes: float, collectives: float, ranks: int) -> float:
        """Compute the seconds of some collectives that move `wire_bytes` over all ranks together."""
        if ranks < 2:
            return 0.0
        share = {"full": wire_bytes / ranks, "half": 2 * wire_bytes / ranks, "shared": wire_bytes}[self.duplex]
        return 8 * share / self.rate + collectives * (ranks - 1) * self.latency


def _bits(text: str) -> float | None:
    """Parse a rate into bits a second: 100Mbps, or 12.5MBps, whose B are bytes; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)([bB])ps", text)
    return float(match[1]) * PREFIXES[match[2].lower()] * (8 if match[3] == "B" else 1) if match else None


def _seconds(text: str) -> float | None:
    """Parse a latency into seconds: 20ms; None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    return float(match[1]) * TIMES[match[2]] if match else None


def project(row: dict[str, Any], link: Link, topology: str) -> float:
    """Project the seconds of a round on a link; ValueError if the log lacks a value that this needs."""
    beside = _needed(row, "round_seconds") - row.get("communication_seconds", 0.0) + row.get("late_seconds", 0.0)
    if topology == "star":
        return _in_a_star(row, link, beside)
    ranks = int(_needed(row, "ranks"))
    wire = _needed(row, "wire_bytes")
    collectives = row.get("collectives", 1)
    if row.get("bucket_sent_after") and row.get("bucket_wire"):
        return beside + _in_buckets(row, link, ranks, wire, collectives)
    return beside + link.seconds(wire, collectives, ranks)


def _in_a_star(row: dict[str, Any], link: Link, beside: float) -> float:
    """Add the transfers of one client to the time `beside` communication, in which the slowest client counts."""
    clients = _needed(row, "clients")
    both = _needed(row, "uplink_bytes") + row.get("downlink_bytes", 0) + row.get("buffer_bytes", 0)
    there_and_back = 8 * both / max(clients, 1) / link.rate + 2 * link.latency * row.get("steps", 1)
    if "slowest_client_seconds" in row:
        in_turn = row.get("compute_seconds", 0.0) + row.get("select_seconds", 0.0)
        beside = max(0.0, beside - in_turn) + row["slowest_client_seconds"]
    return beside + there_and_back


def _in_buckets(row: dict[str, Any], link: Link, ranks: int, wire: float, collectives: float) -> float:
    """Compute how long the round waits for buckets that are sent during backward, and for what is sent beside them."""
    buckets = list(zip(row["bucket_sent_after"], row["bucket_wire"]))
    steps = _needed(row, "steps")
    arrived = 0.0
    for sent_after, bytes_on_wire in buckets:
        arrived = max(arrived, sent_after) + link.seconds(bytes_on_wire, 1, ranks)
    late = steps * max(0.0, arrived - buckets[-1][0])  # from the last sending to the last arrival
    unbucketed = max(0.0, wire - steps * sum(nbytes for _, nbytes in buckets))
    return late + link.seconds(unbucketed, max(0, collectives - steps * len(buckets)), ranks)


def adds_up_clients(row: dict[str, Any]) -> bool:
    """Tell whether the log gives the seconds of several clients of one process only as their sum."""
    in_turn = row.get("clients", 0) > row.get("ranks", 1) and "steps" not in row
    return in_turn and "slowest_client_seconds" not in row


def _needed(row: dict[str, Any], key: str) -> float:
    if key not in row:
        hint = "; give it with --ranks N" if key == "ranks" else f"; --tag {key}=TAG names it in other logs"
        raise ValueError(f"round {row.get('round')} has no {key}{hint}")
    return float(row[key])
