"""The command line: run, report, list, doctor. Modules that import torch are imported late."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from bench.benchmarks import BENCHMARKS
from bench.grid.executors import EXECUTORS
from bench.grid.executors.worker_process import DiedError, RunFunction, start_server
from bench.grid.stopping import interrupt_on_signals
from bench.listing import as_json, as_text, listing
from bench.options import parse_assignment, split_list
from bench.output import print_any_sign
from bench.record import read_folders
from bench.spec import Settings, read_toml, run_options, settings_from
from bench.storage import StorageError, is_writable_folder, nearest_existing
from methods.errors import UsageError, abbreviate, one_line, plain_name, quote
from methods.registry import DEFAULT_METHODS, METHODS, Entry

DONE, SOME_FAILED, NOT_UNDERSTOOD = 0, 1, 2

EXAMPLES = """\
examples:
  python -m bench run                                   nine methods on the embedded default
  python -m bench run --methods finetune,joint --benchmarks cifar100 --scale quick --seeds 0,1
  python -m bench run --methods finetune,finetune:rank=4 --set protocol.epochs=5
  python -m bench run --config grid.toml --dry-run
  python -m bench report --results results
"""


class Parser(argparse.ArgumentParser):
    """argparse, whose errors become `UsageError`s."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See: {self.prog} --help")


def main(
    argv: Sequence[str] | None = None,
    executors: Mapping[str, Entry] = EXECUTORS,
    start: Callable[[], RunFunction] = start_server,
) -> int:
    """Run a command; return its exit status.

    Args:
        argv: the arguments; those of the process by default.
        executors: what `--executor` may name.
        start: called early; returns what runs functions in processes of their own.

    0: all cells done. 1: some cell is not. 2: the command could not be understood or carried out.
    """
    print_any_sign(sys.stdout, sys.stderr)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments, executors, start)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_UNDERSTOOD
    except KeyboardInterrupt:
        print("stopped; files on disk are unchanged", file=sys.stderr)
        return SOME_FAILED
    except (StorageError, DiedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except OSError as error:  # such as a full disk; records are written completely or not at all
        print(f"error: {error}; records already on disk are untouched", file=sys.stderr)
        return SOME_FAILED


def _dispatch(arguments: list[str], executors: Mapping[str, Entry], start: Callable[[], RunFunction]) -> int:
    parser = build_parser()
    options, unknown_options = parser.parse_known_args(arguments)
    if unknown_options:
        raise _unknown_option(unknown_options[0], options.command)
    if options.command == "run":
        return run(options, arguments, executors, start)
    commands = {"report": report, "list": list_components, "doctor": doctor}
    return commands[options.command](options)


def _unknown_option(option: str, command: str) -> UsageError:
    legal = {
        "run": [*(f"--{name}" for name in run_options()), "--set", "--config", "--dry-run", "--skip-missing"],
        "report": ["--results", "--out"],
        "list": ["--json"],
    }.get(command, [])
    near = difflib.get_close_matches(option.partition("=")[0], legal, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return UsageError(
        f"unknown option '{plain_name(option)}' of {command}{hint} Legal: {', '.join(legal) or 'none'}"
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; values are validated later, together with those of the config file."""
    parser = Parser(
        prog="python -m bench",
        description="Compare continual-learning methods on pre-trained vision transformers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run | report | list | doctor")
    _add_run(
        commands.add_parser("run", help="run a grid of methods, benchmarks and seeds", allow_abbrev=False)
    )
    report_parser = commands.add_parser(
        "report", help="turn a folder of records into a report", allow_abbrev=False
    )
    report_parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    report_parser.add_argument("--out", type=Path, help="folder of the report (default: <results>/report)")
    list_parser = commands.add_parser(
        "list", help="show methods, benchmarks, and whether their data are here"
    )
    list_parser.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("doctor", help="show what this machine can run, what is missing, how to get it")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    for name, meaning in run_options().items():
        if Settings.model_fields[name.replace("-", "_")].annotation is bool:
            parser.add_argument(
                f"--no-{name}", dest=name.replace("-", "_"), action="store_const", const=False, help=meaning
            )
        else:
            parser.add_argument(f"--{name}", help=meaning, metavar="…")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OWNER.OPTION=VALUE",
        help="a method's, a benchmark's or the protocol's option; may be repeated",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with the options above as keys and a table [set]; the command line wins",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the cells and stop")
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="record cells without data or weights as skipped and run the rest",
    )


# ---- run ---------------------------------------------------------------------------------------


def run(
    options: argparse.Namespace,
    arguments: Sequence[str],
    executors: Mapping[str, Entry],
    start: Callable[[], RunFunction],
) -> int:
    """Run the cells that are not done yet, and print the table of results."""
    values, sets = gather(options)
    _check_names(values, executors)
    run_function = start()
    settings = settings_from(values, sets)
    _check_results(settings.results)
    with interrupt_on_signals():
        from bench.run_command import run_grid

        command = shlex.join(["python", "-m", "bench", *arguments])
        return run_grid(settings, options, command, executors, run_function)


def gather(options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The values of the config file, overridden by the command line: (settings, dotted options)."""
    values: dict[str, Any] = {"methods": DEFAULT_METHODS, "benchmarks": ("digits",)}
    sets: list[tuple[str, Any]] = []
    if options.config is not None:
        content = read_toml(options.config)
        sets += _flat(content.pop("set", {}))
        values |= {key.replace("-", "_"): value for key, value in content.items()}
    for name in run_options():
        key = name.replace("-", "_")
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    for name in ("methods", "benchmarks", "seeds"):
        if name in values:
            values[name] = _split(values[name])
    values["methods"] = _with_all(values["methods"])
    return values, sets + [parse_assignment(text) for text in options.set]


def _with_all(methods: Any) -> Any:
    """The names, with every registered method in place of "all"; anything but a list of texts as it is."""
    if not isinstance(methods, list | tuple) or "all" not in methods:
        return methods
    named = [name for text in methods for name in (METHODS if text == "all" else [text])]
    return tuple(dict.fromkeys(named))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """[set.finetune] rank = 4, or [set] "finetune.rank" = 4 -> ("finetune.rank", 4)."""
    if not isinstance(table, Mapping):
        raise UsageError(
            f"'set' in the config file is a table, such as [set] finetune.rank = 4; got {quote(table)}"
        )
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(value: Any) -> Any:
    """ "a,b:layers=[0,1],c" -> ["a", "b:layers=[0,1]", "c"]; a list stays a list."""
    return split_list(value) if isinstance(value, str) else value


def _check_names(values: Mapping[str, Any], executors: Mapping[str, Entry]) -> None:
    """Refuse unknown names before anything heavy is imported."""
    for field, registry in (("methods", METHODS), ("benchmarks", BENCHMARKS)):
        if isinstance(values[field], list | tuple):  # anything else is refused by `settings_from`
            for previous, text in pairwise(["", *map(str, values[field])]):
                _check_name(registry, previous, text)
    if isinstance(values.get("executor"), str):
        _ = executors[values["executor"]]


def _check_name(registry: Mapping[str, Entry], previous: str, text: str) -> None:
    """Refuse an unknown name; say so if it may be the rest of the value before it, cut at a comma."""
    try:
        _ = registry[text.partition(":")[0]]
    except UsageError as error:
        option, equals, value = previous.rpartition("=")
        if not equals:
            raise
        whole = json.dumps(one_line(f"{value},{text}"), ensure_ascii=False)
        raise UsageError(
            f"{error}. If it belongs to the value before it, quotes keep them together: "
            f"{one_line(option)}={whole}"
        ) from None


def _check_results(folder: Path) -> None:
    """Refuse a results folder that cannot be written to or created."""
    try:
        existing = nearest_existing(folder)
    except (OSError, ValueError) as error:  # a name that no file system accepts
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot write results to '{plain_name(str(folder))}': {why}; give another --results"
        ) from None
    if not is_writable_folder(existing):
        raise UsageError(
            f"cannot write results to '{folder}': '{existing}' is not a folder this user can write to; "
            "give another --results"
        )


# ---- report, list, doctor ----------------------------------------------------------------------


def report(options: argparse.Namespace) -> int:
    """Write a report of the records of a folder."""
    from reports.folder import strangers
    from reports.groups import distinct
    from reports.report import write_report

    records, complaints = read_folders(options.results)
    cells = distinct(records)
    complaints += cells.copies
    path = write_report(cells.records, options.out or options.results / "report", complaints)
    print(f"report: {path} (records: {len(cells.records)})")
    for sentence in cells.superseded:
        print(f"not in the report: {sentence}")
    if others := strangers(path.parent):
        print(f"not of this report, left alone: {abbreviate(others, 5)}")
    for complaint in complaints:
        print(f"not in the report: {complaint}", file=sys.stderr)
    return SOME_FAILED if complaints else DONE


def list_components(options: argparse.Namespace) -> int:
    """Print the methods and benchmarks, and whether their data are on this machine."""
    components = listing()
    print(as_json(components) if options.json else as_text(components))
    return DONE


def doctor(options: argparse.Namespace) -> int:
    """Print what this machine can run, what is missing, and how to get it."""
    from bench.doctor import examine

    for line in examine():
        print(line)
    return DONE
