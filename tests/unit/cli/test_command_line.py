"""The command line: what `--help` and the documentation show."""

from __future__ import annotations

import argparse

import run_pipeline


def test_every_argument_of_every_verb_has_a_help_text() -> None:
    (verbs,) = [a for a in run_pipeline.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    missing = [
        f"{name} {'/'.join(argument.option_strings) or argument.dest}"
        for name, verb in verbs.choices.items()
        for argument in verb._actions
        if not argument.help
    ]
    assert missing == []
