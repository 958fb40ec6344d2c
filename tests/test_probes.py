"""Probe files, templates and sampling."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.probes.probes import fill, gather_probes
from mergekit_collapse.recipe.schema import ProbesBlock

ROWS = [{"review": f"Film {i} was dull", "label": i % 2} for i in range(50)]


def gather(tmp_path, **task):
    block = ProbesBlock.model_validate(
        {"builtin": False, "samples": 10, "tasks": [{"name": "films", "text": "{review}", **task}]}
    )
    return gather_probes(block, [None], tmp_path)


def write(tmp_path, name, rows=ROWS):
    path = tmp_path / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = ["review,label", *(f"{r['review']},{r['label']}" for r in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(r["review"] for r in rows), encoding="utf-8")
    return name


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_probes(tmp_path, suffix):
    data = write(tmp_path, f"films.{suffix}")
    probes = gather(tmp_path, data=data, target="{label}").probes
    assert len(probes) == 10
    assert {p.target for p in probes} <= {"0", "1"}
    same = gather(tmp_path, data=write(tmp_path, "again.jsonl"), target="{label}").probes
    assert probes == same


def test_a_text_file_gives_its_lines(tmp_path):
    probes = gather(tmp_path, data=write(tmp_path, "films.txt"), text="{text}").probes
    assert all(p.prompt.startswith("Film ") for p in probes)


def test_the_seed_decides_and_other_tasks_do_not(tmp_path):
    data = write(tmp_path, "films.jsonl")
    one = {"name": "films", "data": data, "text": "{review}"}

    def drawn(**block):
        block = ProbesBlock.model_validate({"samples": 10, **block})
        found = gather_probes(block, [None] * len(block.tasks), tmp_path)
        return [p.prompt for p in found.probes if found.tasks[p.task].name == "films"]

    assert drawn(tasks=[one]) == drawn(tasks=[{**one, "name": "other"}, one], builtin=False)
    assert drawn(tasks=[one]) != drawn(tasks=[one], seed=1)


def test_the_digest_follows_the_text(tmp_path):
    data = write(tmp_path, "films.jsonl")
    assert gather(tmp_path, data=data).digest == gather(tmp_path, data=data).digest
    assert gather(tmp_path, data=data).digest != gather(tmp_path, data=data, target="x").digest


def test_builtin_probes_are_one_task(tmp_path):
    found = gather_probes(ProbesBlock(), [], tmp_path)
    assert [(t.name, t.rows) for t in found.tasks] == [("builtin", 32)]


def in_rounds(tmp_path, *tasks, **keys):
    block = ProbesBlock.model_validate(
        {"builtin": False, "samples": "auto", "tasks": list(tasks), **keys}
    )
    return gather_probes(block, [None] * len(tasks), tmp_path)


def films(tmp_path, rows, name="films"):
    found = [{"review": f"{name} {i}", "label": i} for i in range(rows)]
    return {"name": name, "text": "{review}", "data": write(tmp_path, f"{name}.jsonl", found)}


def test_rounds_double_until_a_task_has_no_more(tmp_path):
    found = in_rounds(tmp_path, films(tmp_path, 300), films(tmp_path, 20, "few"))
    assert found.rounds == (16, 32, 52, 84, 148)
    assert [task.rows for task in found.tasks] == [128, 20]
    assert in_rounds(tmp_path, films(tmp_path, 20)).rounds == (8, 16, 20)
    assert in_rounds(tmp_path, films(tmp_path, 5)).rounds == (5,)


@pytest.mark.slow
def test_a_round_begins_with_those_before_it_whatever_other_tasks_there_are(tmp_path):
    one, other = films(tmp_path, 300), films(tmp_path, 40, "other")
    both = in_rounds(tmp_path, one, other)
    for count, size in enumerate((8, 16, 32, 64), start=1):
        part = both.first(count)
        assert part.probes == both.probes[: part.rounds[-1]]
        assert [task.rows for task in part.tasks] == [size, min(size, 40)]
        alone = in_rounds(tmp_path, one).first(count)
        assert [p.prompt for p in part.probes if p.task == 0] == [p.prompt for p in alone.probes]
    assert len({both.first(count).digest for count in range(1, 6)}) == 5
    assert both.first(9) == both


def test_rounds_are_not_in_the_order_of_the_file(tmp_path):
    first = in_rounds(tmp_path, films(tmp_path, 128)).first(1)
    numbers = [int(probe.prompt.split()[1]) for probe in first.probes]
    assert len(set(numbers)) == 8
    assert max(numbers) > 32
    other = in_rounds(tmp_path, films(tmp_path, 128), seed=1).first(1)
    assert other.probes != first.probes


@given(st.text(), st.text())
def test_a_value_is_inserted_as_it_is(before, value):
    template = before.replace("{", "{{").replace("}", "}}") + "{x}"
    assert fill(template, {"x": value}, "row") == before + value


@pytest.mark.parametrize("template", ["{x.__class__}", "{x[0]}", "{0}", "{}", "{x!r}", "{x:>9}"])
def test_templates_reach_nothing_but_fields(template):
    with pytest.raises(EvaluationError, match="no field"):
        fill(template, {"x": "value"}, "row")


@pytest.mark.parametrize("value", [None, float("nan"), [1], {"a": 1}])
def test_a_value_that_is_no_text_is_told(value):
    with pytest.raises(EvaluationError, match="text or a number is needed"):
        fill("{x}", {"x": value}, "row")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"review": "x"}\n{"text": "y"}\n', "a.jsonl:2: no field 'review'"),
        ("a.jsonl", b"not json\n", "a.jsonl:1: not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not JSON"),
        ("a.jsonl", b"[1]\n", "an object of fields is expected"),
        ("a.jsonl", b'{"review": "  "}\n', "the prompt is empty"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"review": "\xff"}\n', "not UTF-8"),
        ("a.csv", b"review,label\nx\n", "a.csv:2: the field 'label' is null"),
        ("a.csv", b"review\nx,y\n", "more cells than the header"),
        ("a.csv", b'review\n"x\ny\n', "not CSV: unexpected end of data"),
        ("a.csv", b"review,review\nx,y\n", "two columns are called 'review'"),
        ("a.jsonl", b'{"review": "\\ud800"}\n', "half of a surrogate pair"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.json", b"[]", "must end in .jsonl, .csv, .parquet, .txt"),
    ],
)
def test_a_bad_file_is_told(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    text = "{label}" if "'label'" in told else "{review}"
    with pytest.raises(EvaluationError, match=told):
        gather(tmp_path, data=name, text=text)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(EvaluationError, match="relative to the folder of the recipe"):
        gather(tmp_path, data="none.jsonl")
    with pytest.raises(EvaluationError, match="must end in"):
        gather(tmp_path, data="./none.xyz")
    with pytest.raises(EvaluationError, match="must end in"):
        gather(tmp_path, data="./" + "a" * 5000)


def test_a_folder_in_place_of_a_file_is_told(tmp_path):
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(EvaluationError, match="cannot be read"):
        gather(tmp_path, data="d.jsonl")


def test_a_hub_data_set_without_network_is_told(tmp_path, monkeypatch):
    # As HF_HUB_OFFLINE=1 sets them, which both libraries read when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match="cannot be read from the hub"):
        gather(tmp_path, data="nobody/no-such-data-set-here")
