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
from typing import TYPE_CHECKING, Any, NoReturn

from bench.stopping import interruptible, listening
from bench.storage import StorageError
from methods.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.executors.spread import Spread
    from bench.grid import Before, Grid
    from bench.plan import Planned
    from bench.record import Record
    from bench.spec import Cell, Settings

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
    return UsageError(f"unknown option '{got}' of {command}{hint} Legal: {', '.join(legal) or 'none'}")


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
        return _run(settings, options, shlex.join(["python", "-m", "bench", *arguments]))


def _run(settings: Settings, options: argparse.Namespace, command: str) -> int:
    from rich.console import Console

    from bench.estimate import longest_first, seconds_by_cell
    from bench.executors.spread import spread_of
    from bench.grid import found_before
    from bench.plan import check_images, device_of, places_of, plan, unfinished

    console = Console()
    planned = plan(settings, skip_missing=options.skip_missing)
    before = found_before(settings.results, planned)
    statuses = {} if settings.rerun == "all" else {cell: found.status for cell, found in before.items()}
    todo = list(unfinished(planned, statuses, settings.rerun))
    seconds = seconds_by_cell(todo, _past(settings.results))
    spread = spread_of(settings, device_of(settings))
    if spread.workers != 1:
        todo = longest_first(todo, seconds)
    if options.dry_run:
        return _show_plan(console, planned, todo, before, seconds, spread)
    _tell_counts(console, planned, todo, before)
    check_images(todo, places_of(settings))
    _make_results(settings.results)
    finished = _carry_out(console, settings, planned, todo, before, seconds, spread, command)
    return _conclude(console, settings.results, planned) if finished else SOME_FAILED


def _past(results: Path) -> list[Record]:
    from bench.record import read_readable

    return read_readable(results)[0] if results.is_dir() else []


def _tell_counts(
    console: Console, planned: Sequence[Planned], todo: Sequence[Planned], before: Mapping[str, Before]
) -> None:
    left = {item.cell.id for item in planned} - {item.cell.id for item in todo}
    done = sum(1 for cell in left if cell in before and before[cell].status == "done")
    others = f", {len(left) - done} left alone" if len(left) > done else ""
    console.print(f"cells: {len(planned)}; {done} done before{others}, {len(todo)} to run")
    for cell in sorted(left & before.keys()):
        if before[cell].complaint:
            console.print(before[cell].complaint, markup=False, highlight=False, soft_wrap=True)


def _make_results(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the results folder '{folder}' ({error.strerror}); give another"
        ) from None


def _carry_out(
    console: Console,
    settings: Settings,
    planned: Sequence[Planned],
    todo: Sequence[Planned],
    before: Mapping[str, Before],
    seconds: Mapping[Cell, float],
    spread: Spread,
    command: str,
) -> bool:
    """Run the cells, then measure; False if it ended early, which was said."""
    from bench.display import display
    from bench.executors.spread import crew_of
    from bench.grid import Grid, StoppedError
    from bench.plan import places_of

    places, limit, workers = places_of(settings), settings.cell_timeout, spread.workers or len(todo) or 1
    anew = settings.rerun == "all"
    with crew_of(spread, places, command, limit) as (crew, how), listening() as stop:
        try:
            with display(console, todo, seconds, workers) as shown:
                finished = 0
                grid = Grid(places, how, crew, shown, stop, before, limit, anew)
                for _ in grid.run(todo):
                    finished += 1
        except StoppedError:
            console.print(
                f"stopped: {finished} of {len(todo)} cells ended and are on disk in '{places.results}'; "
                "the same command goes on with the rest, each from its last experience",
                markup=False,
                soft_wrap=True,
            )
            return False
        return _measure(console, grid, planned)


def _measure(console: Console, grid: Grid, planned: Sequence[Planned]) -> bool:
    """Time the inference of the cells that wait for it; False if that could not be finished."""
    from bench.display import display
    from bench.grid import StoppedError

    try:
        with display(console, [], {}, 1) as grid.shown:
            for _ in grid.measure(planned):
                pass
    except StoppedError:
        console.print("stopped: all accuracies are on disk; the same command goes on measuring inference")
        return False
    except StorageError:
        raise
    except RuntimeError as error:  # a device out of memory, a process that was killed
        console.print(
            f"inference could not be measured: {error}; all accuracies are on disk, "
            "and the same command tries again",
            markup=False,
        )
        return False
    return True


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
            f"'set' in the config file is a table, such as [set] finetune.rank = 4; got {table!r}"
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
        for text in values[field]:
            _ = registry[str(text).partition(":")[0]]


def _check_results(folder: Path) -> None:
    """The results folder can be written to, or made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write results to '{folder}': '{existing}' is not a folder this user can write to; "
            "give another --results"
        )


def _show_plan(
    console: Console,
    planned: Sequence[Planned],
    todo: Sequence[Planned],
    before: Mapping[str, Before],
    seconds: Mapping[Cell, float],
    spread: Spread,
) -> int:
    """What would be run, in which order, where, and about how long it would take."""
    from rich.table import Table

    from bench.estimate import in_words

    turns = {item.cell.id: turn for turn, item in enumerate(todo, start=1)}
    table = Table("cell", "what would happen", "about")
    for item in planned:
        known = seconds.get(item.cell)
        turn, found = turns.get(item.cell.id), before.get(item.cell.id)
        table.add_row(item.cell.id, _fate(item, turn, found), in_words(known) if turn and known else "")
    console.print(table)
    console.print(spread.in_words(), markup=False, highlight=False, soft_wrap=True)
    console.print(_forecast(todo, seconds, spread), markup=False, highlight=False, soft_wrap=True)
    console.print(f"cells: {len(planned)}; {len(todo)} to run; nothing was run or written")
    return DONE


def _fate(item: Planned, turn: int | None, found: Before | None) -> str:
    if turn is None:
        return "nothing: " + ("its record is reused" if found and not found.complaint else "it is left alone")
    return f"record as skipped: {item.missing}" if item.missing else f"run, in turn {turn}"


def _forecast(todo: Sequence[Planned], seconds: Mapping[Cell, float], spread: Spread) -> str:
    """About how long training and evaluation would take."""
    from bench.estimate import in_words, schedule

    known = [item for item in todo if item.cell in seconds]
    if not known:
        return "time: no past record in this results folder tells how long these cells take"
    of = (
        ""
        if len(known) == len(todo)
        else f" for {len(known)} of {len(todo)} cells; of the others nothing is known"
    )
    if spread.workers is None:
        whole = in_words(sum(seconds[item.cell] for item in known))
        return f"time, from past records: about {whole}{of}, divided by what the cluster runs at a time"
    whole = in_words(schedule(known, seconds, spread.workers))
    return f"time, from past records: about {whole}{of}; timing of inference comes after that"


def _conclude(console: Console, results: Path, planned: Sequence[Planned]) -> int:
    from bench.grid import found_before
    from bench.record import RECORD_NAME, read
    from reports.terminal import print_table

    found = found_before(results, planned)
    whole = [cell for cell, before in found.items() if before.complaint is None]
    records = [read(results / cell / RECORD_NAME) for cell in whole]
    print_table(records, console)
    console.print(
        f"records: {results}; report: python -m bench report --results {shlex.quote(str(results))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    failed = sum(1 for record in records if record.status != "done")
    if failed:
        console.print(f"{failed} of {len(planned)} cells are not done; reasons are in the table's notes")
    for before in found.values():
        if before.complaint:
            console.print(
                f"not in the table: {before.complaint}", markup=False, highlight=False, soft_wrap=True
            )
    if absent := len(planned) - len(found):
        console.print(
            f"{absent} of {len(planned)} cells have no record; the command without --rerun runs them"
        )
    return SOME_FAILED if failed or len(whole) < len(planned) else DONE


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
