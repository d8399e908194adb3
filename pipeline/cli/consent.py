"""What a run stores and where, and whether the people in it have agreed.

Example:
    for name, stored in stored_files(config): print(f"{name}: {stored.what} in {stored.path}")
    require_consent(with_consent(config, "Ada agreed"))         # ConfigError where nobody was asked
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pipeline.errors import ConfigError
from pipeline.frame import Frame, Prediction
from pipeline.node import Source, Stored
from pipeline.runtime.config import Config, NodeConfig, instantiate, resolve
from pipeline.runtime.graph import EVENTS


def stored_files(config: Config) -> Iterator[tuple[str, Stored]]:
    """(node, what it writes and where), for every node that leaves something behind."""
    for node in config.nodes.values():
        stored = instantiate(node.use, node.options, where=node.where).stored()
        if stored is not None:
            yield node.name, stored


def with_consent(config: Config, consent: str) -> Config:
    """The config with the consent of the command line in the nodes that store it and have none of their own."""
    nodes = dict(config.nodes)
    for name, stored in stored_files(config):
        if consent and stored.takes_consent and not stored.consent:
            options = {**nodes[name].options, "consent": consent}
            nodes[name] = dataclasses.replace(nodes[name], options=options)
    return dataclasses.replace(config, nodes=nodes)


def require_consent(config: Config) -> None:
    """Raises ConfigError for a node that stores pictures, sound or embeddings of people who were not asked."""
    for name, stored in stored_files(config):
        if not stored.consent and (people := next(_people_in(config, config.nodes[name], stored), "")):
            raise ConfigError(
                f"{config.nodes[name].where}: it stores {people}, with the people in front of it, in {stored.path}. "
                'Ask for their consent and state it: --consent "Ada and Bo agreed, for the demo, until May", or '
                f"consent: in nodes.{name}. It is stored in the file"
            )


def _people_in(config: Config, node: NodeConfig, stored: Stored) -> Iterator[str]:
    """What is stored of people whom a live sensor sees or records, in words."""
    for edge in node.inputs:
        sender = config.nodes.get(edge.source.removesuffix(EVENTS))
        if sender is None or edge.source.endswith(EVENTS):
            continue
        if Frame in stored.of and _is_live_source(sender):
            yield f"what '{sender.name}' captures"
        elif Frame in stored.of and resolve(sender.use, sender.where).produces is Frame and _sees_live(config, sender):
            yield f"what '{sender.name}' makes of what a live sensor captures"
        embeds = (sender.options.get("options") or {}).get("embeddings")
        if Prediction in stored.of and embeds and _sees_live(config, sender):
            yield f"embeddings, by which a person may be recognised, from '{sender.name}'"


def _sees_live(config: Config, node: NodeConfig) -> bool:
    senders = [config.nodes.get(edge.source.removesuffix(EVENTS)) for edge in node.inputs]
    return _is_live_source(node) or any(_sees_live(config, sender) for sender in senders if sender is not None)


def _is_live_source(node: NodeConfig) -> bool:
    if not issubclass(resolve(node.use, node.where), Source):
        return False
    source = instantiate(node.use, node.options, where=node.where)
    return isinstance(source, Source) and source.is_live
