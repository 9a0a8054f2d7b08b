"""Whatever lies in front of a reader: it is refused in one sentence of ours, or read whole."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bench import cli, run_command
from bench.benchmarks import BENCHMARKS
from bench.cell import checkpoint
from bench.cell.checkpoint import Checkpoint, DamagedError
from bench.options import parse_assignment, parse_value, split_outside
from bench.record import DERIVED, RECORD_NAME, Record, RecordError, read, read_readable, to_json
from bench.spec import (
    Cell,
    Choice,
    Component,
    Protocol,
    Settings,
    make_protocol,
    parse_choice,
    read_toml,
    settings_from,
)
from methods.errors import UsageError
from methods.hyper import as_plain, make_hyper
from methods.registry import METHODS
from tests.bench.test_record import EXPERIENCES, LATENCY, MANIFEST, content, costing
from tests.bench.test_spec import GRID, PROTOCOL, cell


def fuzzed(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=slow
    )


def lists_in_lists(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


#: Values that Python, TOML or JSON can hold, and that most code does not expect.
HOSTILE: dict[str, Any] = {
    "digits without end": "1" * 5000,
    "an integer without end": 10**5000,
    "a negative one": -(10**5000),
    "an integer of 70 bits": 2**70,
    "beyond a float": 10**400,
    "hexadecimal digits without end": "0x" + "f" * 5000,
    "lists in lists": lists_in_lists(5000),
    "lists in lists, written": "[" * 5000 + "]" * 5000,
    "deeper than is legal": lists_in_lists(100),
    "half a character": "\ud800",
    "a byte that was no UTF-8": "\udcff",
    "NUL": "a\0b",
    "lines": "a\nb\r\n\u2028c",
    "two keys": "1\nother = 2",
    "not a number": float("nan"),
    "infinity": float("inf"),
    "infinity, written": "1e999",
    "true": True,
    "a long text": "x" * 10_000,
    "bytes": b"x",
}
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    [value for value in HOSTILE.values() if isinstance(value, str)]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
NUMBERS = st.sampled_from([1, 2, "3", 0.25, "1e-3", 64, [3, 4], ["0", "5"]])
CHOSEN = st.sampled_from(["30m", "auto", "cpu", "ray", "processes", "paper", "flip", "bf16", "none", "kv"])
VALUES = (
    NUMBERS
    | CHOSEN
    | st.sampled_from(list(HOSTILE.values()))
    | PLAIN
    | st.recursive(PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3))
)


def answer(read_it: Callable[..., Any], *arguments: Any) -> Any:
    """What was read; None where it was refused in a sentence of ours. Any other exception gets out."""
    try:
        return read_it(*arguments)
    except UsageError as error:
        told = str(error)
        assert told.strip()
        assert len(told.splitlines()) == 1
        assert len(told) < 2500
        return None


def keys_of(known: Iterable[str]) -> st.SearchStrategy[str]:
    """Known names, and now and then another one."""
    return st.sampled_from([*known] * 4 + ["sead", "", "a\nb", "\ud800", "x" * 10_000])


def check_settled(made: Any) -> None:
    """It cannot be changed, and it is legal by its own rules."""
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(type(made).model_fields)), "other")
    assert repr(type(made).model_validate(made.model_dump())) == repr(made)


# ---- settings ----------------------------------------------------------------------------------


TOML = st.sampled_from(["8", "'8'", "1e-3", "[0, [1, 2]]", "{a = 1}", "2020-01-31", "8 # nine", "", "nan"])


@fuzzed(300)
@given(TOML | TEXTS | st.from_regex(r"[\[\]{}0-9ex=,.+'\"\n-]{1,12}", fullmatch=True))
@example("1\nother = 2")
def test_a_value_is_all_of_its_toml_or_all_of_its_text(text: str) -> None:
    value = parse_value(text)
    assert isinstance(value, str) or repr(tomllib.loads(f"value = {text}")) == repr({"value": value})
    assert not isinstance(value, str) or value == text or tomllib.loads(f"value = {text}")["value"] == value


PARTS = st.lists(st.sampled_from(["rank=2", "rank=4", "lr=1e-3", "gate=none", "x=[1]"]) | TEXTS, max_size=4)


@fuzzed(300)
@given(st.sampled_from(["ncm", "finetune", ""]) | TEXTS, PARTS.map("+".join) | TEXTS)
@example("finetune", "rank=2+rank=4")
def test_no_option_of_a_choice_is_lost(name: str, rest: str) -> None:
    choice = answer(parse_choice, f"{name}:{rest}")
    if choice is not None:
        told = f"{name}:{rest}".strip().partition(":")[2]
        assert sum(len(k) + len(v) + 1 for k, v in choice.options.items()) <= len(told)
        assert "".join(f"{k}{v}" for k, v in choice.options.items()).count("=") <= told.count("=")
        assert len(choice.options) == len([part for part in split_outside(told, "+") if part])
        assert choice.label.startswith(choice.name)
        check_settled(choice)


@fuzzed(200)
@given(TEXTS | st.tuples(TEXTS, TOML | TEXTS).map("=".join))
def test_an_assignment_is_read_at_its_first_sign(text: str) -> None:
    read_it = answer(parse_assignment, text)
    assert (read_it is None) == (not text.partition("=")[0].strip() or "=" not in text)
    assert read_it is None or read_it[0] == text.partition("=")[0].strip()


NAMES = st.lists(keys_of(["ncm", "finetune:rank=2", "joint:x=[1]", "finetune"]), max_size=3)
DOTTED = keys_of(["finetune.rank", "finetune.rank", "digits.x", "protocol.epochs", "ncm.", ".a", "rank"])
SETS = st.lists(st.tuples(DOTTED, VALUES), max_size=2)


@fuzzed(500)
@given(st.dictionaries(keys_of(sorted(Settings.model_fields)), VALUES, max_size=2), SETS)
def test_settings_are_refused_in_a_sentence_or_legal(changes: dict[str, Any], sets: Any) -> None:
    made = answer(settings_from, {**GRID, **changes}, sets)
    if made is not None:
        check_settled(made)
        assert [choice.label.partition(":")[0] for choice in made.methods] == [c.name for c in made.methods]
        for dotted, value in dict(sets).items():
            owner, _, option = dotted.partition(".")
            held = [c.options for c in (*made.methods, *made.benchmarks) if c.name == owner]
            assert repr(value) in [repr(o.get(option)) for o in (*held, made.protocol_options)]


@fuzzed(200)
@given(st.sampled_from(["methods", "benchmarks"]), NAMES | VALUES)
@example("methods", "finetune")
@example("methods", {"finetune": 1})
def test_names_are_refused_in_a_sentence_or_all_there(field: str, names: Any) -> None:
    made = answer(settings_from, {**GRID, field: names})
    if made is not None:
        assert isinstance(names, list)
        assert list(getattr(made, field)) == [parse_choice(text) for text in names]


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_value_that_nobody_expects_is_answered(value: Any) -> None:
    for field in (*Settings.model_fields, "sead", "finetune.rank", "protocol.epochs", "protocol"):
        sets = [(field, value)] if "." in field else []
        made = answer(settings_from, GRID if sets else {**GRID, field: value}, sets)
        if made is not None:
            check_settled(made)
            assert json.dumps(made.model_dump(), default=str)


NAMELESS = {key: value for key, value in HOSTILE.items() if isinstance(value, str | int)} | {"none": None}


@pytest.mark.parametrize("name", NAMELESS.values(), ids=NAMELESS)
def test_a_name_that_nobody_expects_is_answered(name: Any) -> None:
    assert answer(settings_from, {**GRID, name: 1}) is None
    assert answer(make_protocol, {**PROTOCOL, name: 1}) is None
    assert answer(make_hyper, "finetune", OPTIONS["finetune"], {name: 1}) is None
    assert answer(settings_from, GRID, [(f"{name if isinstance(name, str) else ''}.x", 1)]) is None


@pytest.mark.parametrize("text", ["a\0b", "\udcff"], ids=ascii)
@pytest.mark.parametrize("field", ["results", "data_root", "weights", "backbone", "ray_address", "methods"])
def test_a_text_that_no_file_could_be_named_by_is_refused(field: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{field}: a text is made of Unicode characters other than NUL"):
        settings_from({**GRID, field: [text] if field == "methods" else text})


def test_an_option_cannot_be_set_in_what_is_no_table() -> None:
    with pytest.raises(UsageError, match=r"protocol_options: a table is legal.* got 5"):
        settings_from({**GRID, "protocol_options": 5}, [("protocol.epochs", 1)])


def test_of_one_option_set_twice_the_later_value_counts() -> None:
    made = settings_from(GRID, [(key, value) for value in (4, 8) for key in ("ncm.x", "protocol.epochs")])
    assert made.methods[1] == Choice(name="ncm", options={"x": 8})
    assert made.protocol_options == {"epochs": 8}


@fuzzed(200)
@given(st.dictionaries(keys_of(sorted(Protocol.model_fields)), VALUES, max_size=1))
def test_a_protocol_is_refused_in_a_sentence_or_legal(changes: dict[str, Any]) -> None:
    made = answer(make_protocol, {**PROTOCOL, **changes})
    if made is not None:
        check_settled(made)
        again = make_protocol(made.model_dump())
        assert (again, hash(again)) == (made, hash(made))


OPTIONS = {name: METHODS[name].load().Hyper for name in METHODS}
OPTIONS |= {name: BENCHMARKS[name].load().Options for name in BENCHMARKS}
GIVEN = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda owner: st.tuples(
        st.just(owner),
        st.dictionaries(keys_of([*OPTIONS[owner].__pydantic_fields__, "x"]), VALUES, max_size=2),
    )
)


@fuzzed(500)
@given(GIVEN)
@example(("finetune", {"rank": "1" * 25}))
@example(("cifar100", {"split": "\udcff.csv"}))
@example(("cifar100", {"split": "a\0b"}))
def test_options_of_methods_and_benchmarks_are_refused_in_a_sentence_or_legal(asked: Any) -> None:
    owner, values = asked
    made = answer(make_hyper, owner, OPTIONS[owner], values)
    if made is not None:
        plain = as_plain(made)
        assert make_hyper(owner, OPTIONS[owner], json.loads(json.dumps(plain, allow_nan=False))) == made
        options = Component(name=owner, label=owner, options=plain).frozen_options
        assert hash(options) == hash(Component(name=owner, label=owner, options=plain).frozen_options)


@pytest.mark.parametrize("value", [[[1], [2]], {"a": [1, {"b": 2}]}], ids=str)
def test_options_are_a_key_for_caches_whatever_they_hold(value: Any) -> None:
    assert len({Component(name="a", label="a", options={"x": value}).frozen_options} | {()}) == 2


# ---- the config file and the command line ------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


KEYS = st.sampled_from(
    [*cli.run_options(), "set.finetune.rank", "set", "protocol_options", "'a\\nb'", '"\\u0000"']
)
LITERALS = TOML | st.sampled_from(
    [
        "5",
        "'ncm,finetune:rank=4'",
        "['ncm']",
        "{ncm = 1}",
        "'2h'",
        "[[1]]",
        "inf",
        "12:30:00",
        "1" * 5000,
        "0x" + "f" * 5000,
        str(2**70),
        "[" * 5000 + "]" * 5000,
        "[" * 100 + "]" * 100,
        "{a = " * 100 + "1" + "}" * 100,
        '"\\u0000"',
    ]
)
LINES = st.lists(st.tuples(KEYS, LITERALS).map(" = ".join), max_size=3).map("\n".join)
LONG_KEY = "set" + ".a" * 2000 + " = 1"


@fuzzed(400)
@given(LINES.map(str.encode) | st.binary(max_size=30) | TEXTS.map(lambda t: t.encode("utf-8", "replace")))
@example(LONG_KEY.encode())
def test_a_config_file_is_refused_in_a_sentence_or_read_whole(folder: Path, data: bytes) -> None:
    path = folder / "grid.toml"
    path.write_bytes(data)
    found = answer(read_toml, path)
    if found is not None:
        assert repr(found) == repr(tomllib.loads(path.read_text(encoding="utf-8")))
        options = cli.build_parser().parse_args(["run", "--config", str(path)])
        made = answer(lambda: settings_from(*cli.gather(options)))
        if made is not None:
            check_settled(made)


@pytest.mark.parametrize("name", ["absent", "", "a\0b", "\ud800", "x" * 5000], ids=ascii)
def test_a_config_file_that_is_not_there_is_answered(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot read the config file|the config file's name: a text is"):
        read_toml(folder / name)


WORDS = TEXTS | st.sampled_from(
    ["ncm", "ncm,finetune:rank=4", "0,1", "1" * 5000, "finetune.rank=8", "30m", "paper"]
)
FLAGS = st.sampled_from([f"--{name}" for name in [*cli.run_options(), "set", "skip-missing", "help", "sead"]])
ARGUMENTS = st.lists(
    st.tuples(FLAGS, WORDS) | st.tuples(FLAGS) | st.tuples(WORDS) | st.tuples(FLAGS, WORDS).map("=".join),
    max_size=3,
).map(lambda groups: [word for group in groups for word in ([group] if isinstance(group, str) else group)])


@fuzzed(400)
@given(ARGUMENTS)
def test_a_command_line_is_answered_without_a_traceback(arguments: list[str]) -> None:
    seen: list[Settings] = []
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setattr(run_command, "run_grid", lambda settings, *rest: seen.append(settings) or 0)
        with contextlib.redirect_stdout(io.StringIO()) as helped:
            try:
                status: Any = cli.main(["run", *arguments, "--dry-run"])
            except SystemExit as left:  # --help
                status = left.code
    assert (status == 0) == (told.getvalue() == "") == (len(seen) == 1 or "usage: " in helped.getvalue())
    assert status == 0 or re.match(r"error: \S", told.getvalue())
    for made in seen:
        check_settled(made)


# ---- the identity of a cell --------------------------------------------------------------------


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=10,
)
COMPONENTS = st.builds(
    Component,
    name=st.sampled_from(["a", "b"]),
    label=TEXTS,
    options=st.dictionaries(st.sampled_from(["x", "y"]), JSON, max_size=2),
)
CELLS = st.fixed_dictionaries(
    {},
    optional={
        "method": COMPONENTS,
        "benchmark": COMPONENTS,
        "seed": st.integers(0, 2**63),
        "tasks": st.integers(1, 3),
        "task_sizes": st.none() | st.tuples(st.integers(1, 3)) | st.tuples(st.integers(1, 3), st.just(1)),
        "class_order": st.none() | st.just((1, 0)),
        "split_sha256": st.none() | st.sampled_from(["a", "None", ""]),
    },
).map(lambda changes: cell(**changes))


def meant(one: Cell) -> str:
    """All of a cell but its labels, so that what is equal is the same text."""
    plain = one.model_dump()
    del plain["method"]["label"], plain["benchmark"]["label"]
    return json.dumps(plain, sort_keys=True)


@fuzzed(300)
@given(CELLS, CELLS)
def test_cells_share_an_id_if_and_only_if_they_are_the_same(a: Cell, b: Cell) -> None:
    hashed = [one.id.rpartition("-")[2] for one in (a, b)]
    assert (hashed[0] == hashed[1]) == (meant(a) == meant(b))
    again = Cell.model_validate(a.model_dump())
    assert (again.id, again) == (a.id, a)


@fuzzed(300)
@given(CELLS)
def test_an_id_is_the_name_of_one_folder(one: Cell) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._=-]{14,254}", one.id)
    assert Path("results", one.id).parts == ("results", one.id)


ALIKE = [None, True, False, 1, 0, 1.0, -0.0, "", "1", "null", "True", [], [1], [[1]], {}, {"1": 1}, [None]]


def test_options_that_look_alike_are_different_cells() -> None:
    ids = {cell(method=Component(name="a", label="a", options={"x": value})).id for value in ALIKE}
    assert len({*ids, cell(method=Component(name="a", label="a", options={})).id}) == len(ALIKE) + 1
    assert len({cell(split_sha256=value).id for value in (None, "None", "null", "")}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, b"x", Path("x"), {1}], ids=str)
def test_a_cell_holds_nothing_that_its_id_could_not_tell(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"options\.x"):
        Component(name="a", label="a", options={"x": value})


# ---- records -----------------------------------------------------------------------------------


WHOLE = to_json(Record.model_validate(content()))


def record_of(folder: Path, data: bytes) -> Record | None:
    """The record in a file of these bytes, or None where it was refused; whole either way."""
    path = folder / RECORD_NAME
    path.write_bytes(data)
    try:
        found = read(path)
    except RecordError as error:
        told = str(error)
        assert f"the record '{path}' " in told
        assert len(told.splitlines()) == 1
        assert len(told) < 2500
        return None
    path.write_text(to_json(found))
    assert read(path) == found
    return found


def without_derived(content: Any) -> Any:
    """What is read of a record's content: what follows by a formula is computed again."""
    if not isinstance(content, dict):
        return content
    return {name: value for name, value in content.items() if name != DERIVED}


def is_kept(record: Record, stored: Any) -> bool:
    """Whether all that a file says and is not derived is in the record that was read from it."""
    return holds(without_derived(json.loads(to_json(record))), without_derived(stored))


def holds(found: Any, told: Any) -> bool:
    """Whether all that the file tells is in what was read, nothing of it dropped or turned into another."""
    if isinstance(told, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], told[key]) for key in told)
    if isinstance(told, list):
        return isinstance(found, list) and len(found) == len(told) and all(map(holds, found, told))
    return found == told and isinstance(found, bool) == isinstance(told, bool)


def paths(value: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where there is something in a JSON value: keys and indices from the outside."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*above, key)
        yield from paths(value[key], *above, key)


PLACES = list(paths(without_derived(json.loads(WHOLE))))


def put(place: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """The whole record's content with a change made at a place: `change` gets what holds it, and its key."""
    changed: dict[str, Any] = json.loads(WHOLE)
    holder: Any = changed
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return changed


def test_a_whole_record_is_read(folder: Path) -> None:
    found = record_of(folder, WHOLE.encode())
    assert found is not None
    assert is_kept(found, content())


def test_a_record_that_is_cut_short_anywhere_is_refused(folder: Path) -> None:
    data = WHOLE.encode()
    assert data.endswith(b"}\n")  # but for that end of the line nothing may be missing
    assert all(record_of(folder, data[:end]) is None for end in range(len(data) - 1))


@fuzzed(300)
@given(st.data())
def test_a_record_with_bytes_changed_is_refused_or_says_what_is_in_the_file(
    folder: Path, data: st.DataObject
) -> None:
    changed = bytearray(WHOLE.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(changed) - 1))
        removed = data.draw(st.integers(0, 2))
        changed[start : start + removed] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"1", b"-", b'"', b",", b"}", b"9e9", b"null"])
        )
    found = record_of(folder, bytes(changed))
    if found is not None:
        assert is_kept(found, json.loads(changed))


@fuzzed(400)
@given(st.sampled_from(PLACES), JSON | st.sampled_from([10**18, True, 1, 1.5, "1", "no", [1, 2], [[1.0]]]))
def test_a_record_with_a_value_replaced_is_refused_or_says_what_is_in_the_file(
    folder: Path, place: tuple[str | int, ...], value: Any
) -> None:
    changed = put(place, lambda holder, key: holder.__setitem__(key, value))
    found = record_of(folder, json.dumps(changed).encode())
    if found is not None:
        assert is_kept(found, changed)


def test_a_record_that_lacks_something_is_refused_unless_null_or_a_default_says_the_same(
    folder: Path,
) -> None:
    for place in PLACES:
        changed = put(place, lambda holder, key: holder.pop(key))
        found = record_of(folder, json.dumps(changed).encode())
        if found is not None:
            assert is_kept(found, changed)


@pytest.mark.parametrize("key", ["odd", "", "a\nb", "x" * 10_000], ids=["odd", "empty", "lines", "long"])
def test_a_record_with_something_added_is_refused_unless_it_is_kept(folder: Path, key: str) -> None:
    for place in [("schema",), *PLACES]:

        def add(holder: Any, beside: Any) -> None:
            holder.insert(beside, 1) if isinstance(holder, list) else holder.__setitem__(key, 1)

        changed = put(place, add)
        found = record_of(folder, json.dumps(changed).encode())
        if found is not None:
            assert is_kept(found, changed)


def test_a_record_with_more_hits_than_images_is_refused_wherever_that_is(folder: Path) -> None:
    refused = 0
    for place in PLACES:
        if place[0] != "correct" or len(place) < 3:
            continue
        changed = put(place, lambda holder, key: holder.__setitem__(key, 21))
        assert record_of(folder, json.dumps(changed).encode()) is None
        refused += 1
    assert refused == 4


def test_other_counts_of_images_are_other_accuracies(folder: Path) -> None:
    for task in range(2):
        changed = put(("counts", task), lambda holder, key: holder.__setitem__(key, 100))
        found = record_of(folder, json.dumps(changed).encode())
        assert found is not None
        assert found.accuracy_matrix is not None
        assert found.accuracy_matrix[1][task] == content()["correct"][1][task] / 100


REQUIRED = ("schema", "status", "method", "benchmark", "seed", "tasks", "config", "class_order", "correct")


@pytest.mark.parametrize("key", [*REQUIRED, "counts", "manifest"])
def test_a_record_without_a_part_of_its_results_is_refused(folder: Path, key: str) -> None:
    assert record_of(folder, json.dumps({k: v for k, v in content().items() if k != key}).encode()) is None


NAMED = sorted({place[-1] for place in paths(json.loads(WHOLE)) if isinstance(place[-1], str)})


@pytest.mark.parametrize("key", NAMED)
def test_a_key_that_is_there_twice_is_refused(folder: Path, key: str) -> None:
    path = folder / RECORD_NAME
    for other in ("null", '"done"', "0"):
        path.write_text(WHOLE.replace(f'"{key}": ', f'"{key}": {other}, "{key}": ', 1))
        with pytest.raises(RecordError, match=f"has '{key}' twice"):
            read(path)


LITERAL = {
    "digits without end": "1" * 5000,
    "beyond a float": "1" + "0" * 400,
    "20 digits": "1" * 20,
    "infinity": "1e999",
    "not a number": "NaN",
    "minus infinity": "-Infinity",
    "lists in lists": "[" * 100_000 + "]" * 100_000,
    "lists in lists that JSON takes": "[" * 500 + "]" * 500,
    "lists in lists that pydantic takes": "[" * 200 + "]" * 200,
    "objects in objects": '{"a":' * 500 + "1" + "}" * 500,
    "half a character": '"\\ud800"',
    "NUL": '"\\u0000"',
}
WHERE = {
    "schema": WHOLE.replace('"schema": 6', '"schema": %s'),
    "seed": WHOLE.replace('"seed": 0', '"seed": %s'),
    "config": WHOLE.replace('"epochs": 3', '"epochs": %s'),
    "count of rounds": WHOLE.replace('"rounds": 2', '"rounds": %s', 1),
    "batch": WHOLE.replace('"batch": 64', '"batch": %s', 1),
    "counts": WHOLE.replace('"counts": [\n    10', '"counts": [\n    %s'),
    "all of it": "%s",
    "after it": WHOLE + "%s",
}


@pytest.mark.parametrize("literal", LITERAL.values(), ids=LITERAL)
@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
def test_a_value_in_a_record_that_nobody_expects_is_refused(folder: Path, where: str, literal: str) -> None:
    assert where.count("%s") == 1
    assert record_of(folder, where.replace("%s", literal).encode()) is None


CONVERTED: dict[str, dict[str, Any]] = {
    "seed": {"seed": True},
    "tasks": {"tasks": 2.0},
    "schema": {"schema": 6.0},
    "dirty": {"manifest": MANIFEST | {"dirty": "no"}},
    "threads": {"manifest": MANIFEST | {"threads": "2"}},
    "stable": costing(latency=[LATENCY | {"stable": 1}]),
    "flops": costing(experiences=[EXPERIENCES[0] | {"flops": True}, EXPERIENCES[1]]),
}


@pytest.mark.parametrize("changes", CONVERTED.values(), ids=CONVERTED)
def test_a_value_of_another_type_is_not_turned_into_a_legal_one(
    folder: Path, changes: dict[str, Any]
) -> None:
    assert record_of(folder, json.dumps(content(**changes)).encode()) is None


@fuzzed(300)
@given(
    st.binary(max_size=50)
    | JSON.map(lambda v: json.dumps(v).encode())
    | TEXTS.map(lambda t: t.encode("utf-8", "replace"))
)
def test_what_is_no_record_is_refused(folder: Path, data: bytes) -> None:
    assert record_of(folder, data) is None


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[: len(data) // 2],
    lambda data: b"",
    lambda data: data.replace(b'"tasks": 2', b'"tasks": 3'),
    lambda data: data.replace(b'"status"', b'"status": "failed", "status"'),
    lambda data: b"[" * 100_000,
    lambda data: b"\xff" + data,
]


@fuzzed(30)
@given(st.lists(st.none() | st.sampled_from(DAMAGES), max_size=6))
def test_every_whole_record_of_a_folder_is_read_and_every_other_one_named(
    tmp_path_factory: pytest.TempPathFactory, damages: list[Callable[[bytes], bytes] | None]
) -> None:
    results = tmp_path_factory.mktemp("results")
    for number, damage in enumerate(damages):
        (results / str(number)).mkdir()
        data = to_json(Record.model_validate(content(seed=number))).encode()
        (results / str(number) / RECORD_NAME).write_bytes(damage(data) if damage else data)
    records, complaints = read_readable(results)
    damaged = [number for number, damage in enumerate(damages) if damage]
    assert [record.seed for record in records] == [n for n in range(len(damages)) if n not in damaged]
    assert len(complaints) == len(damaged)
    for number, told in zip(damaged, complaints, strict=True):
        assert f"the record '{results / str(number) / RECORD_NAME}' " in told


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {"a": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0, 4), "ids": torch.tensor([3, 1])}
    return checkpoint.save(
        Checkpoint(tensors, {"none": None, "floats": [0.1]}), tmp_path_factory.mktemp("cell"), 3
    )


def loaded(folder: Path, data: bytes, sha256: str) -> Checkpoint | None:
    """The checkpoint in a file of these bytes, or None where it was refused as it should be."""
    path = folder / f"3.{sha256}.safetensors"
    path.write_bytes(data)
    try:
        return checkpoint.load(path)
    except DamagedError as error:
        told = str(error)
    finally:
        path.unlink()
    assert f"the checkpoint '{path}' is damaged: " in told
    return None


def test_a_checkpoint_with_any_byte_changed_or_cut_off_is_refused(folder: Path, saved: Path) -> None:
    data, sha256 = saved.read_bytes(), hashlib.sha256(saved.read_bytes()).hexdigest()
    assert loaded(folder, data, sha256) is not None
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        assert loaded(folder, flipped, sha256) is None
        assert loaded(folder, data[:at], sha256) is None


@fuzzed(200)
@given(st.binary(max_size=60), st.booleans())
def test_what_is_no_checkpoint_is_refused_under_any_name(folder: Path, data: bytes, own_hash: bool) -> None:
    sha256 = hashlib.sha256(data if own_hash else data + b"x").hexdigest()
    assert loaded(folder, data, sha256) is None


@fuzzed(300)
@given(st.data())
def test_a_damaged_checkpoint_that_was_renamed_is_refused_or_has_all_its_tensors(
    folder: Path, saved: Path, data: st.DataObject
) -> None:
    changed = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        start = data.draw(st.integers(0, len(changed) - 1))
        changed[start : start + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    found = loaded(folder, bytes(changed), hashlib.sha256(changed).hexdigest())
    assert found is None or (len(found.tensors) == 3 and isinstance(found.notes, dict))


def header(**entries: Any) -> bytes:
    """A safetensors file without any tensor's content."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


EMPTY = {"dtype": "F32", "shape": [2**64 - 1, 0], "data_offsets": [0, 0]}
FOREIGN = {
    "empty": b"",
    "a pickle": b"\x80\x04N.",
    "tensors only": header(),
    "no notes": header(__metadata__={"format": "pt"}),
    "notes cut short": header(__metadata__={"notes": '{"a'}),
    "notes without names": header(__metadata__={"notes": "[]"}),
    "notes in notes": header(__metadata__={"notes": "[" * 100_000}),
    "digits without end": header(__metadata__={"notes": '{"a": ' + "1" * 5000 + "}"}),
    "a shape beyond all": header(__metadata__={"notes": "{}"}, a=EMPTY),
    "a header beyond all": b"\xff" * 20,
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_has_its_own_hash_for_a_name_and_is_no_checkpoint_is_refused(
    folder: Path, data: bytes
) -> None:
    assert loaded(folder, data, hashlib.sha256(data).hexdigest()) is None
