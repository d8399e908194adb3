"""The health of a run as text for Prometheus, and as one word for whoever watches over it. Pure.

Example:
    exposition(health)           # '# TYPE sensorium_node_up gauge\\nsensorium_node_up{node="camera"} 1\\n…'
    trouble(health)              # {"camera": "not answering: no report for 3 s"}; {}: all is well
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.frame import Health, NodeHealth

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
IN_TROUBLE = ("failed", "given up", "not answering", "restarting")
Sample = tuple[dict[str, str], float]


def trouble(health: Health | None) -> dict[str, str]:
    """Node → its state and why, of those that do not do their work. Before the first report: nothing is known."""
    if health is None:
        return {"run": "no report yet"}
    return {n.node: f"{n.state}: {n.note}".rstrip(": ") for n in health.nodes if n.state in IN_TROUBLE}


def exposition(health: Health | None) -> str:
    """The counters of every node in Prometheus' text format; "" before the first report."""
    lines = []
    for name, (kind, about) in METRICS.items():
        samples = [s for node in (health.nodes if health is not None else ()) for s in _samples(name, node)]
        if samples:
            lines += [f"# HELP sensorium_{name} {about}", f"# TYPE sensorium_{name} {kind}"]
            lines += [f"sensorium_{name}{{{_labels(labels)}}} {value:g}" for labels, value in samples]
    return "".join(f"{line}\n" for line in lines)


# Name without its prefix → (type, help).
METRICS = {
    "node_up": ("gauge", "1 while the node does its work."),
    "node_state": ("gauge", "1 for the state that the node is in."),
    "node_restarts_total": ("counter", "How often its process was started again."),
    "node_cpu_seconds_total": ("counter", "CPU time of its process."),
    "messages_sent_total": ("counter", "Messages that the node sent."),
    "messages_received_total": ("counter", "Messages that it received, by source."),
    "messages_dropped_total": ("counter", "Messages that were dropped, by source and reason."),
    "frames_used_total": ("counter", "Of an aligner: frames that are in a set, by source."),
    "frames_unused_total": ("counter", "Of an aligner: frames that no set wanted, by source."),
    "latency_seconds": ("gauge", "Percentiles over the run so far, by name."),
}


def _samples(name: str, node: NodeHealth) -> Iterator[Sample]:
    this = {"node": node.node}
    match name:
        case "node_up":
            yield this, node.state not in IN_TROUBLE
        case "node_state":
            yield this | {"state": node.state}, 1
        case "node_restarts_total":
            yield this, node.restarts
        case "node_cpu_seconds_total":
            yield this, node.cpu_s
        case "messages_sent_total":
            yield this, node.produced
        case "messages_received_total":
            yield from ((this | {"source": source}, count) for source, count in node.received.items())
        case "messages_dropped_total":
            for source, reasons in node.dropped.items():
                yield from ((this | {"source": source, "reason": why}, count) for why, count in reasons.items())
        case "frames_used_total":
            yield from ((this | {"source": source}, count) for source, count in node.used.items())
        case "frames_unused_total":
            yield from ((this | {"source": source}, count) for source, count in node.unused.items())
        case "latency_seconds":
            for what, percentiles in node.latency_ms.items():
                for percentile, ms in percentiles.items():
                    quantile = f"{int(percentile[1:]) / 100:g}"
                    yield this | {"name": what, "quantile": quantile}, ms / 1000


def _labels(labels: dict[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
