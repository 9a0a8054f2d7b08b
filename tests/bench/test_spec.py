"""Settings, cells and their identity."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.options import parse_value, split_list, unquote
from bench.spec import (
    ADDED,
    Cell,
    Choice,
    Component,
    Protocol,
    label_of,
    make_protocol,
    parse_choice,
    read_toml,
    settings_from,
)
from methods.errors import UsageError

PROTOCOL = {"backbone": "b", "image_size": 32, "epochs": 1, "batch_size": 8}
GRID = {"methods": ["finetune", "ncm"], "benchmarks": ["digits"]}


def cell(**changes) -> Cell:
    fields = {
        "method": Component(name="finetune", label="finetune", options={"rank": 10}),
        "benchmark": Component(name="digits", label="digits", options={}),
        "seed": 0,
        "scale": "full",
        "eval_on": "test",
        "device": "cpu",
        "tasks": 5,
        "task_sizes": (2,) * 5,
        "class_order": tuple(range(10)),
        "split_sha256": "a",
        "backbone_sha256": "b",
        "protocol": Protocol(**PROTOCOL),
    }
    return Cell(**{**fields, **changes})


def test_a_choice_keeps_its_options_as_typed():
    choice = parse_choice("duallora:gate=none+rank=8+lr=1e-3+layers=[0, 1]+flag=true")
    assert choice.name == "duallora"
    assert choice.options == {"gate": "none", "rank": "8", "lr": "1e-3", "layers": "[0, 1]", "flag": "true"}


def test_a_label_names_its_options_in_order():
    assert Choice(name="a", options={"z": 1, "b": "x"}).label == "a:b=x+z=1"
    assert label_of("a", {}) == "a"


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans(), max_size=4)
)
def test_a_label_parses_back_to_its_choice(options):
    choice = parse_choice(label_of("name", options))
    assert Choice(name="name", options={k: parse_value(v) for k, v in choice.options.items()}) == Choice(
        name="name", options=options
    )


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(str.strip))
@example(",\x7f")
def test_a_label_parses_back_to_its_text(text):
    label = label_of("image-folder", {"path": text})
    (parsed,) = split_list(label) if "\n" not in label else [label]
    assert unquote("path", parse_choice(parsed).options["path"]) == text


@pytest.mark.parametrize("text", ["", ":", "a:", "a:rank", "a:=3"])
def test_a_choice_that_cannot_be_read_says_what_is_legal(text):
    with pytest.raises(UsageError, match="legal: "):
        parse_choice(text)


def test_set_reaches_its_owner_and_a_variant_wins_over_it():
    values = {**GRID, "methods": ["finetune", "finetune:rank=2", "ncm"]}
    settings = settings_from(values, [("finetune.rank", 4), ("protocol.epochs", 7)])
    assert [choice.label for choice in settings.methods] == ["finetune:rank=4", "finetune:rank=2", "ncm"]
    assert settings.protocol_options == {"epochs": 7}


@pytest.mark.parametrize(
    ("values", "sets", "words"),
    [
        ({**GRID, "sead": 1}, [], "unknown setting 'sead'; did you mean 'seeds'"),
        ({**GRID, "scale": "tiny"}, [], "scale: .*'smoke', 'quick' or 'full'.* got 'tiny'"),
        ({**GRID, "tasks": "ten"}, [], "tasks: .*integer.* got 'ten'"),
        ({**GRID, "tasks": 0}, [], "tasks: .*greater than or equal to 1.* got 0"),
        ({**GRID, "seeds": ["0", "0"]}, [], "seeds are distinct"),
        ({**GRID, "seeds": [-1]}, [], "seeds are distinct integers from 0"),
        ({**GRID, "methods": ["ncm", "ncm"]}, [], "ncm given twice"),
        ({**GRID, "methods": []}, [], "methods: .*at least 1"),
        (GRID, [("nmc.metric", 1)], "unknown owner.*'nmc'; did you mean 'ncm'"),
        (GRID, [("rank", 1)], "legal: owner.option=value"),
        ({**GRID, "workers": "0", "executor": "processes"}, [], "workers: .*greater than or equal to 1"),
        ({**GRID, "threads": 0}, [], "threads: .*greater than or equal to 1"),
        (
            {**GRID, "cell_timeout": "soon"},
            [],
            "cell_timeout: legal: seconds, or a number with its unit, .*got 'soon'",
        ),
        ({**GRID, "cell_timeout": "0h"}, [], "cell_timeout: .*greater than 0"),
    ],
)
def test_bad_settings_are_answered_in_a_sentence(values, sets, words):
    with pytest.raises(UsageError, match=words):
        settings_from(values, sets)


def test_a_protocol_knows_its_fields():
    assert make_protocol(PROTOCOL).head_init == "zero"
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        make_protocol({**PROTOCOL, "epoch": 3})
    with pytest.raises(UsageError, match=r"protocol.schedule: .*got 'linear'"):
        make_protocol({**PROTOCOL, "schedule": "linear"})


CHANGES = {
    "hyper-parameter": {"method": Component(name="finetune", label="finetune", options={"rank": 9})},
    "benchmark option": {"benchmark": Component(name="digits", label="digits", options={"x": 1})},
    "seed": {"seed": 1},
    "scale": {"scale": "quick"},
    "evaluated on": {"eval_on": "validation"},
    "device": {"device": "cuda"},
    "task sizes": {"task_sizes": (4, 3, 1, 1, 1)},
    "class order": {"class_order": tuple(reversed(range(10)))},
    "split": {"split_sha256": "c"},
    "data": {"data_sha256": "c"},
    "weights": {"backbone_sha256": "c"},
    **{
        field: {"protocol": Protocol(**{**PROTOCOL, field: value})}
        for field, value in {
            "epochs": 2,
            "image_size": 64,
            "precision": "bf16",
            "normalisation": "unit",
            "augmentation": "none",
            "schedule": "coda",
            "head_init": "default",
            "backbone": "c",
            "drop_last": True,
            "class_order": "identity",
            "geometry": "whole",
            "test_crop": 0.875,
        }.items()
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_setting_is_another_cell(change):
    assert cell(**change).id != cell().id


def at(path, **changes):
    benchmark = Component(
        name="image-folder", label=f"image-folder:path={path}", options={"path": path, "x": 1}
    )
    return cell(benchmark=benchmark, places=("path",), **changes)


def test_a_place_is_not_identity_once_what_is_there_is_known():
    assert at("a", data_sha256="c").id == at("b", data_sha256="c").id != at("a", data_sha256="d").id
    assert at("a").without_data().id != at("b").without_data().id  # two folders that are both missing


def test_an_option_that_is_a_place_counts_as_one_that_is_not_set():
    plain = {"benchmark": Component(name="cifar100", label="cifar100", options={"split": None})}
    listed = {"benchmark": Component(name="cifar100", label="cifar100:split=a", options={"split": "a"})}
    assert cell(**listed, places=("split",)).id == cell(**plain).id  # but for the hash of the split


def test_a_field_that_came_later_is_written_only_where_it_differs_from_what_was_before():
    written = Protocol(**PROTOCOL).model_dump(mode="json")
    assert not ADDED.keys() & written.keys()
    assert Protocol(**PROTOCOL, **ADDED) == Protocol.model_validate(written)
    changed = Protocol(**PROTOCOL, drop_last=True).model_dump(mode="json")
    assert changed == {**written, "drop_last": True}


def test_a_label_is_not_identity_and_the_folder_name_is_readable():
    renamed = cell(method=Component(name="finetune", label="finetune", options={"rank": 10}))
    assert renamed.id == cell().id
    labelled = cell(method=Component(name="finetune", label="a/b c", options={"rank": 10}))
    assert labelled.id.rpartition("-")[2] == cell().id.rpartition("-")[2]
    assert labelled.id.startswith("a-b-c-digits-s0-")
    assert cell().id.startswith("finetune-digits-s0-")


def test_settings_and_cells_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        cell().seed = 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_config_file_is_read_in_every_encoding_that_is_marked(encoding, tmp_path):
    path = tmp_path / "grid.toml"
    path.write_bytes('methods = ["ncm"]\r\nresults = "é"\r\n'.encode(encoding))
    assert read_toml(path) == {"methods": ["ncm"], "results": "é"}


def test_a_config_file_of_no_known_encoding_names_the_line(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_bytes('methods = ["ncm"]\nresults = "é"\n'.encode("latin-1"))
    with pytest.raises(UsageError, match="line 2 is not UTF-8 text; save the file as UTF-8"):
        read_toml(path)


def test_a_config_file_that_is_no_toml_is_answered(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("methods = [\n")
    with pytest.raises(UsageError, match=r"grid.toml' is not valid TOML: ."):
        read_toml(path)
    with pytest.raises(UsageError, match="cannot read the config file"):
        read_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), (90, 90), ("0.5", 0.5)]
)
def test_a_time_limit_is_in_seconds_or_has_its_unit(text, seconds):
    assert settings_from({**GRID, "cell_timeout": text}).cell_timeout == seconds
