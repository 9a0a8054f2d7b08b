"""The command line: run, report, list, doctor. Imports nothing heavy before it knows it has to."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.stopping import interruptible
from bench.storage import StorageError
from methods.errors import UsageError, named, shown

DONE, SOME_FAILED, NOT_UNDERSTOOD = 0, 1, 2

EXAMPLES = """\
examples:
  python -m bench run                                   every method on the embedded default
  python -m bench run --methods finetune,joint --benchmarks cifar100 --scale quick --seeds 0,1
  python -m bench run --methods finetune,finetune:rank=4 --set protocol.epochs=5
  python -m bench run --config grid.toml --dry-run
  python -m bench report --results results
"""

# option of `run` -> what it means; each is also a key of the config file
RUN_OPTIONS = {
    "methods": "names, separated by commas; a variant is name:option=value+option=value (default: all)",
    "benchmarks": "names, separated by commas; options as with methods (default: digits)",
    "seeds": "integers, separated by commas (default: 0,1,2)",
    "tasks": "number of experiences (default: the benchmark's own)",
    "scale": "smoke | quick | full (default: full, the papers' setting)",
    "protocol": "common: all methods under the same conditions (default); paper: each method's own recipe",
    "backbone": "full timm tag (default: the benchmark's own)",
    "weights": "safetensors file of the backbone, or 'random'",
    "image-size": "side of the input in pixels (default: the benchmark's own)",
    "data-root": "where data are looked for first",
    "device": "auto | cpu | cuda (default: auto)",
    "executor": "how cells are spread: serial (default) | processes, on this machine | ray, over a cluster",
    "workers": "cells at a time (default: serial 1, processes one a GPU or core, ray as many as fit)",
    "threads": "of the CPU, for each cell (default: all, shared by the workers; ray: 1)",
    "cell-timeout": "what a cell may take: seconds, or such as 30m, 2h (default: any time)",
    "ray-address": "of a running Ray cluster, or auto (default: a Ray of its own on this machine)",
    "results": "folder of the records (default: results)",
    "eval-on": "test | validation; validation holds out training images, for choosing hyper-parameters",
    "precision": "fp32 | bf16 (default: fp32)",
    "rerun": "missing | failed | all: which cells with a record are run again (default: missing)",
}


class Parser(argparse.ArgumentParser):
    """argparse, with an unknown option answered by the nearest known one."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    0: all cells done. 1: some cell is not. 2: the command could not be understood or carried out.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_UNDERSTOOD
    except KeyboardInterrupt:
        print("stopped; nothing on disk was changed by what was under way", file=sys.stderr)
        return SOME_FAILED
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except (
        OSError
    ) as error:  # a full disk, a folder that disappeared: records are written whole or not at all
        print(f"error: {error}; records already on disk are untouched", file=sys.stderr)
        return SOME_FAILED


def _dispatch(arguments: list[str]) -> int:
    parser = build_parser()
    options, unknown_options = parser.parse_known_args(arguments)
    if unknown_options:
        raise _unknown_option(unknown_options[0], options.command)
    commands = {"run": run, "report": report, "list": list_components, "doctor": doctor}
    return commands[options.command](options, arguments)


def _unknown_option(got: str, command: str) -> UsageError:
    legal = {
        "run": [*(f"--{name}" for name in RUN_OPTIONS), "--set", "--config", "--dry-run", "--skip-missing"],
        "report": ["--results", "--out"],
        "list": ["--json"],
    }.get(command, [])
    near = difflib.get_close_matches(got.partition("=")[0], legal, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return UsageError(f"unknown option '{named(got)}' of {command}{hint} Legal: {', '.join(legal) or 'none'}")


def build_parser() -> argparse.ArgumentParser:
    """The grammar of the command line; values are validated later, together with the config file's."""
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
    made = commands.add_parser("report", help="turn a folder of records into a report", allow_abbrev=False)
    made.add_argument("--results", type=Path, default=Path("results"), help="folder of the records")
    made.add_argument("--out", type=Path, help="folder of the report (default: <results>/report)")
    listed = commands.add_parser("list", help="methods, benchmarks, and whether their data are here")
    listed.add_argument("--json", action="store_true", help="for programs")
    commands.add_parser("doctor", help="what this machine can run, what is missing, how to get it")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    for name, meaning in RUN_OPTIONS.items():
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


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run what is not done yet, show the table."""
    from bench.spec import settings_from

    values, sets = gather(options)
    _check_names(values)
    settings = settings_from(values, sets)
    _check_results(settings.results)
    with interruptible():
        from bench.command import carry_out

        return carry_out(settings, options, shlex.join(["python", "-m", "bench", *arguments]))


def gather(options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The config file's values, overridden by the command line's: (settings, dotted options)."""
    from bench.spec import parse_assignment, read_toml

    values: dict[str, Any] = {"methods": _all_methods(), "benchmarks": ("digits",)}
    sets: list[tuple[str, Any]] = []
    if options.config is not None:
        content = read_toml(options.config)
        sets += _flat(content.pop("set", {}))
        values |= {key.replace("-", "_"): value for key, value in content.items()}
    for name in RUN_OPTIONS:
        key = name.replace("-", "_")
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    for name in ("methods", "benchmarks", "seeds"):
        if name in values:
            values[name] = _split(values[name])
    return values, sets + [parse_assignment(text) for text in options.set]


def _all_methods() -> tuple[str, ...]:
    from methods.registry import METHODS

    return tuple(METHODS)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """[set.finetune] rank = 4, or [set] "finetune.rank" = 4 -> ("finetune.rank", 4)."""
    if not isinstance(table, Mapping):
        raise UsageError(
            f"'set' in the config file is a table, such as [set] finetune.rank = 4; got {shown(table)}"
        )
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split(value: Any) -> Any:
    """ "a,b:layers=[0,1],c" -> ["a", "b:layers=[0,1]", "c"]; a list stays a list."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in re.split(r",(?![^\[]*\])", value) if part.strip()]


def _check_names(values: Mapping[str, Any]) -> None:
    """Unknown names are answered before anything heavy is imported."""
    from bench.benchmarks import BENCHMARKS
    from methods.registry import METHODS

    for field, registry in (("methods", METHODS), ("benchmarks", BENCHMARKS)):
        if isinstance(values[field], list | tuple):  # anything else is refused with all other values
            for text in values[field]:
                _ = registry[str(text).partition(":")[0]]


def _check_results(folder: Path) -> None:
    """The results folder can be written to, or made."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:  # a name that no file system takes
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot write results to '{named(str(folder))}': {why}; give another --results"
        ) from None
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write results to '{folder}': '{existing}' is not a folder this user can write to; "
            "give another --results"
        )


# ---- report, list, doctor ----------------------------------------------------------------------


def report(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Render the records of a folder."""
    from bench.record import read_readable
    from reports.report import write_report

    records, complaints = read_readable(options.results)
    path = write_report(records, options.out or options.results / "report", complaints)
    print(f"report: {path} (records: {len(records)})")
    for complaint in complaints:
        print(f"not in the report: {complaint}", file=sys.stderr)
    return SOME_FAILED if complaints else DONE


def list_components(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Methods, benchmarks, and whether their data are here."""
    from bench.listing import as_json, as_text, listing

    found = listing()
    print(as_json(found) if options.json else as_text(found))
    return DONE


def doctor(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """What this machine can run, what is missing, how to get it."""
    from bench.doctor import examine

    for line in examine():
        print(line)
    return DONE
