from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from entities.coverage import measure_coverage
from entities.tree import EntityTree
from rl.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
CHEST = REPOSITORY / "configs" / "entities" / "chest_findings.csv"
DOID = Path(os.environ.get("MEDRL_DATA", REPOSITORY.parent / "shared" / "data")) / "doid"
OBO = r"""format-version: 1.2

[Term]
id: D:1
name: disease

[Term]
id: D:2
name: cancer
synonym: "malignant neoplasm" EXACT []
synonym: "growth" RELATED []
synonym: "cancer \"proper\"" EXACT [X:1]
is_a: D:1 ! disease

[Term]
id: D:3
name: old term
is_obsolete: true

[Term]
id: D:4
name: sarcoma
is_a: D:2 {source="x"} ! cancer
is_a: OTHER:9 ! not here

[Typedef]
id: part_of
name: part of
"""
GRAPH = {
    "graphs": [
        {
            "nodes": [
                {"id": "http://purl.obolibrary.org/obo/D_1", "lbl": "disease", "type": "CLASS"},
                {
                    "id": "http://purl.obolibrary.org/obo/D_2",
                    "lbl": "cancer",
                    "meta": {
                        "synonyms": [
                            {"pred": "hasExactSynonym", "val": "malignant neoplasm"},
                            {"pred": "hasExactSynonym", "val": 'cancer "proper"'},
                            {"pred": "hasRelatedSynonym", "val": "growth"},
                        ]
                    },
                },
                {"id": "http://purl.obolibrary.org/obo/D_3", "lbl": "old term", "meta": {"deprecated": True}},
                {"id": "http://purl.obolibrary.org/obo/D_4", "lbl": "sarcoma", "type": "CLASS"},
                {"id": "http://purl.obolibrary.org/obo/part_of", "lbl": "part of", "type": "PROPERTY"},
            ],
            "edges": [
                {"sub": "http://purl.obolibrary.org/obo/D_2", "pred": "is_a", "obj": "http://purl.obolibrary.org/obo/D_1"},
                {"sub": "http://purl.obolibrary.org/obo/D_4", "pred": "is_a", "obj": "http://purl.obolibrary.org/obo/D_2"},
                {"sub": "http://purl.obolibrary.org/obo/D_4", "pred": "part_of", "obj": "http://purl.obolibrary.org/obo/D_3"},
            ],
        }
    ]
}  # fmt: skip
CSV = (
    'id,name,synonyms,parents\nD:1,disease,,\nD:2,cancer,"malignant neoplasm|cancer ""proper""",D:1\nD:4,sarcoma,,D:2\n'
)
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        content = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "text"), [("d.obo", OBO), ("d.obo.gz", OBO), ("d.json", json.dumps(GRAPH)), ("d.csv", CSV)]
)
def test_the_same_tree_is_read_from_every_format(write: Write, name: str, text: str) -> None:
    tree = EntityTree.load(write(name, text))
    assert {id: entity.name for id, entity in tree.entities.items()} == {
        "D:1": "disease", "D:2": "cancer", "D:4": "sarcoma",
    }  # fmt: skip
    assert tree.entities["D:2"].synonyms == ("malignant neoplasm", 'cancer "proper"')
    assert tree.ancestors("D:4") == ("D:2", "D:1")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.owl", "", r"d\.owl must end in \.obo, \.json, \.csv"),
        ("d.obo", "[Term]\nid: D:1\n", r"d\.obo:1: a \[Term\] needs an id and a name; got id"),
        ("d.obo", "", "holds no entity"),
        ("d.obo", "[Term]\nid: D:1\nname: a\n[Term]\nid: D:1\nname: b\n", "'D:1' occurs twice"),
        ("d.json", "[1]", "is no OBO graph"),
        ("d.csv", "id,label\n", r"d\.csv:1: the columns are id, name, synonyms, parents.*got id, label"),
        ("d.csv", "id,name\nD:1,a,b\n", r"d\.csv:2: a row needs"),
        ("d.csv", "id,name\nD:1,\n", r"d\.csv:2: a row needs"),
        ("d.obo.gz", OBO, r"d\.obo\.gz cannot be read: Compressed file ended"),
    ],
)
def test_a_malformed_ontology_is_named_with_its_line(write: Write, name: str, text: str, message: str) -> None:
    path = write(name, text)
    if name.endswith(".gz"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError, match=message):
        EntityTree.load(path)


def test_a_missing_ontology_is_an_error_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.obo cannot be read: No such file"):
        EntityTree.load(tmp_path / "none.obo")


def test_a_file_is_read_anew_when_it_changes(write: Write) -> None:
    path = write("d.csv", "id,name\nD:1,cancer\n")
    assert EntityTree.load(path) is EntityTree.load(str(path))
    write("d.csv", "id,name\nD:1,carcinoma\n")
    assert EntityTree.load(path).named("carcinoma") == ("D:1",)


def test_a_circle_of_parents_ends(write: Write) -> None:
    tree = EntityTree.load(write("d.csv", "id,name,parents\na,one,b\nb,two,a\n"))
    assert tree.ancestors("a") == ("b",)


def test_synonyms_are_the_same_entity_and_more_or_other_words_are_not() -> None:
    tree = EntityTree.load(CHEST)
    assert tree.same("pleural effusions", "Hydrothorax")
    assert tree.same("chest:effusion", "pleural fluid")
    assert tree.same("ptx", "Pneumothorax")
    assert not tree.same("left pleural effusion", "right pleural effusion")
    assert not tree.same("pneumothorax", "no pneumothorax")
    assert not tree.same("consolidation", "pneumonia")  # one below the other
    assert tree.same("Kerley B lines", "kerley b line")  # in no tree, the same words


def test_a_name_goes_before_a_synonym_of_another_entity(write: Write) -> None:
    tree = EntityTree.load(write("d.csv", "id,name,synonyms\na,one,shared\nb,shared,\n"))
    assert [mention.entity_id for mention in tree.find("It is shared.")] == ["b"]
    assert tree.named("shared") == ("b", "a")
    assert tree.same("one", "shared")


def test_coverage_counts_both_ways() -> None:
    tree = EntityTree.load(CHEST)
    texts = ["No pleural effusion. Effusions resolved.", "Cardiomegaly with pleural fluid", "nothing here"]
    coverage = measure_coverage(tree, texts, terms=["hydrothorax", "Kerley B lines", "nodule", "Kerley B lines"])
    assert coverage.texts_by_entity == {"chest:effusion": 2, "chest:cardiomegaly": 1}
    assert coverage.unknown_terms == {"Kerley B lines": 2}
    assert coverage.forward == 0.5  # 2 of 4 terms
    assert coverage.backward == 2 / 25


def test_a_tree_finds_the_same_names_in_another_process() -> None:
    tree = EntityTree.load(CHEST)
    text = "No hydrothorax; the PTX is larger."
    assert pickle.loads(pickle.dumps(tree)).find(text) == tree.find(text) != ()


@pytest.mark.skipif(not DOID.exists(), reason=f"the Disease Ontology slims are not in {DOID}")
def test_the_disease_ontology_reads_text_as_it_is_written() -> None:
    tree = EntityTree.load(DOID / "DO_cancer_slim.obo.gz")
    text = "Haemangiosarcomas, ALL, and of all lymphomas a Hodgkin’s lymphoma"
    named = [tree.entities[mention.entity_id].name for mention in tree.find(text)]
    assert named == ["angiosarcoma", "acute lymphoblastic leukemia", "lymphoma", "Hodgkin's lymphoma"]
    assert tree.same("ALL", "acute lymphocytic leukaemia")
    assert tree.ancestors("DOID:9952")[-1] == "DOID:162"  # ALL is a cancer
