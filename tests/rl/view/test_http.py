"""The pages without a browser: what is found, what is refused, and that nothing of a log becomes markup."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from rl.cli import main
from rl.errors import LogError
from rl.view.index import TrajectoryIndex
from rl.view.runs import find_runs
from rl.view.server import ViewServer
from rollouts.log import step_path, write_step
from tests.made_up_log import write_made_up
from tests.rl.view.conftest import ATTACK, a_training_step, make_runs, serving

HIT = re.compile(r'href="([^"]*)"(?: aria-current="true")? class="hit"')


def ask(
    server: ViewServer, path: str = "/", *, method: str = "GET", headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, str, http.client.HTTPMessage]:
    """Status, text and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path + (f"?{urlencode(fields, doseq=True)}" if fields else ""), headers=headers or {})
    reply = connection.getresponse()
    text = reply.read().decode(errors="replace")
    connection.close()
    return reply.status, text, reply.headers


def found(server: ViewServer, **fields: Any) -> list[str]:
    """The places of the hits of a page, in order."""
    status, text, _ = ask(server, **fields)
    assert status == 200, text
    return [match.replace("%2F", "/").partition("open=")[2].partition("&")[0] for match in HIT.findall(text)]


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    # The rewards are those that `make_runs` says; the unscored one is the last row of its step.
    ({"run": "second"}, ["second/train/1/0", "second/train/1/1", "second/train/1/2"]),
    ({"run": ["first", "second"], "reward_min": 0.9}, ["first/train/1/3"]),
    ({"kind": "eval"}, ["first/eval/4/0", "first/eval/0/0"]),
    ({"step_min": 1, "step_max": 1, "reward_max": 0.125}, ["first/train/1/0", "second/train/1/0"]),
    ({"outcome": "unscored"}, ["first/train/2/2", "first/train/1/4", "second/train/1/2"]),
    ({"finish": "length", "run": "first"}, ["first/train/2/1", "first/train/1/1"]),
    ({"answer": "right", "step_max": 1}, ["first/train/1/3", "second/train/1/1"]),
    ({"answer": "untold", "outcome": "scored"}, ["first/eval/0/0"]),
    ({"claims": "refuted", "kind": "train"}, ["first/train/2/1", "first/train/1/3", "second/train/1/1"]),
    ({"group": "trained", "answer": "wrong", "reward_min": 0.25}, ["first/train/1/1", "first/train/1/2"]),
    ({"stratum": ATTACK}, ["first/eval/0/0"]),
    ({"task": "case-2", "outcome": "scored"}, ["first/train/2/0", "first/train/2/1"]),
    ({"scorer": "facts", "score_max": 0.2}, ["first/eval/4/0", "first/train/1/0", "second/train/1/0"]),
    ({"text": "OTHER-1 malignant"}, ["second/train/1/0", "second/train/1/1", "second/train/1/2"]),
    ({"text": "a mass at"}, ["first/eval/4/0"]),
    ({"text": "case-2/1"}, ["first/train/2/1"]),
    ({"text": "nowhere to be read"}, []),
]


@pytest.mark.parametrize(
    ("fields", "places"), FILTERS, ids=lambda value: urlencode(value) if isinstance(value, dict) else ""
)
def test_a_filter_lets_through_what_it_says_and_nothing_else(
    server: ViewServer, fields: dict[str, Any], places: list[str]
) -> None:
    assert found(server, **fields) == places


@pytest.mark.parametrize(
    ("sort", "rewards"),
    [
        ("reward-high", ["1/3", "2/1", "2/0", "1/2"]),
        ("reward-low", ["1/0", "1/1", "1/2", "2/0"]),
        ("advantage-low", ["1/0", "1/1", "1/2", "2/0"]),
        ("score-high", ["1/3", "2/1", "2/0", "1/2"]),
        ("log", ["1/0", "1/1", "1/2", "1/3"]),
        ("latest", ["2/0", "2/1", "2/2", "1/0"]),
    ],
)
def test_hits_are_sorted_and_those_without_a_number_come_last(
    server: ViewServer, sort: str, rewards: Sequence[str]
) -> None:
    places = found(server, run="first", kind="train", sort=sort, scorer="facts" if "score" in sort else "")
    assert [place.removeprefix("first/train/") for place in places[:4]] == list(rewards)
    if sort not in ("log", "latest"):
        assert {place.removeprefix("first/train/") for place in places[-2:]} == {"1/4", "2/2"}  # the unscored


def test_a_page_holds_fifty_and_the_next_ones_go_on(tmp_path: Path) -> None:
    write_made_up(tmp_path / "run", rows=1130)  # 22 pages of 50, and 30; two batches of up to 1,024
    with serving(ViewServer(TrajectoryIndex(find_runs([tmp_path / "run"])), host="127.0.0.1", port=0)) as server:
        pages = [found(server, page=page, sort="log") for page in (1, 2, 23)]
        rows = [*range(100), *range(1100, 1130)]
        assert [*pages[0], *pages[1], *pages[2]] == [f"run/train/1/{row}" for row in rows]
        assert found(server, page=99, sort="log") == pages[2]
        _, text, _ = ask(server, open="run/train/1/49", sort="log")
        assert re.search(r'href="/\?sort=log&amp;page=2&amp;open=run%2Ftrain%2F1%2F50" rel="next"', text)
        assert found(server, text="row-1050") == ["run/train/1/1050"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward_min": "high"}, "reward_min must be a number; got 'high'"),
        ({"reward_min": "nan"}, "reward_min must be a number"),
        ({"page": "0"}, "page must be a number"),
        ({"sort": "__class__"}, "sort must be one of"),
        ({"claims": "reward"}, "claims must be one of"),
        ({"scorer": "nobody"}, "no trajectory has a score by 'nobody'; there are"),
        ({"score_min": "0.5"}, "Choose a scorer: "),
        ({"colour": "red"}, "there is no filter 'colour'; there are run, kind"),
        ({"entity": "mass"}, "start with --tree FILE"),
        ({"text": "x" * 501}, "text may be 500 characters long"),
    ],
)
def test_what_cannot_be_asked_is_told_with_what_can(server: ViewServer, fields: dict[str, str], said: str) -> None:
    status, text, _ = ask(server, **fields)
    assert (status, said in text.replace("&#x27;", "'")) == (400, True), text


def test_an_open_trajectory_shows_all_that_was_logged_of_it(server: ViewServer) -> None:
    _, text, _ = ask(server, open="first/train/1/0")
    for shown in (
        "first</b> · train step 1 · group 0 · sample 1 · group trained",
        "case-1/0", "−0.500",  # the advantage
        "radius 17.9 high", "record.radius · as cited", "weight 0.5",
        "<code>v1</code>", "<code>8e2b</code>",  # version and inputs of a score
        "zoom", "closer", "[image]\nLook.",
        "mean size 0.25 nats, largest -0.5 at token 1",  # learner -0.5, -0.75 against -0.5, -0.25 drawn: 0 and -0.5
        "medrl explain", "--trajectory case-1/0",
    ):  # fmt: skip
        assert shown in text, shown
    _, text, _ = ask(server, open="first/train/1/4")
    assert "Unscored: judge failed" in text and "no answer within 30 s" in text


def test_boxes_of_reference_answer_and_claims_are_drawn_in_pixels_of_the_image(server: ViewServer) -> None:
    _, text, _ = ask(server, open="first/eval/4/0")
    drawn = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" class="box-(\w+)">', text)
    assert drawn == [
        ("16", "8", "32", "16", "reference"),
        ("0", "0", "32", "32", "reference"),
        ("32", "0", "32", "32", "answer"),
        ("16", "8", "16", "8", "refuted"),  # the claim that stands where the box does: characters 7 to 23
    ]


def test_where_none_is_open_rewards_and_scores_are_distributed_and_bars_lead_to_what_is_in_them(
    server: ViewServer,
) -> None:
    _, text, _ = ask(server, run="first", kind="train")
    # 0, .25, .5, .75, .875 and 1: mean 3.375 / 6 = 0.5625; three of these are above 0.5 and so right
    assert 'aria-label="distribution of the reward: 6, mean 0.562"' in text
    assert 'aria-label="distribution of answer: 6, mean 0.500"' in text
    bars = [address.replace("&amp;", "&") for address in re.findall(r'<a href="([^"]*)"><rect', text)]
    assert bars[0] == "/?run=first&kind=train&reward_min=0&reward_max=0.05"
    assert HIT.findall(ask(server, bars[0])[1]) and "1</b> of 13" in ask(server, bars[0])[1]


def test_images_are_served_by_their_hash(server: ViewServer) -> None:
    _, text, _ = ask(server, open="first/train/1/0")
    (address,) = re.findall(r'<img src="(/images/[^"]+)"', text)
    status, content, headers = ask(server, address)
    assert (status, headers["Content-Type"], content[1:4]) == (200, "image/png", "PNG")


@pytest.mark.parametrize(
    "path",
    [
        "/images/first/../config.yaml",
        "/images/first/..%2Fconfig.yaml",
        "/images/..%2F..%2Fetc/passwd",
        "/images/first/" + "0" * 64 + ".png",
        "/images/nobody/" + "0" * 64 + ".png",
        "/assets/..%2Fserver.py",
        "/assets/server.py",
        "/../../etc/passwd",
        "//elsewhere.example/",
        "/?open=first/train/1/99",
        "/?open=..%2F..%2Fetc%2Fpasswd%2Ftrain%2F1%2F0",
        "/?open=first%2Ftrain%2F1%2F-1",
    ],
)
def test_no_address_leads_out_of_the_runs(server: ViewServer, path: str) -> None:
    status, text, _ = ask(server, path)
    assert status == 404 and "root:" not in text and "import" not in text, text


def test_every_reply_forbids_scripts_of_others_and_tells_browsers_not_to_guess(server: ViewServer) -> None:
    for path in ("/", "/?open=first/eval/0/0", "/curves", "/nowhere", "/?page=0", "/assets/view.js"):
        _, _, headers = ask(server, path)
        policy = headers["Content-Security-Policy"]
        assert (
            "default-src 'none'; script-src 'self'; style-src 'self';" in policy and "frame-ancestors 'none'" in policy
        )
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_script_in_anything_that_was_logged_stays_text(server: ViewServer) -> None:
    for path in (
        "/",
        "/?" + urlencode({"stratum": ATTACK}),
        "/?open=first/eval/0/0",
        "/?" + urlencode({"text": ATTACK}),
    ):
        _, text, _ = ask(server, path)
        assert "<script>window" not in text and "<img src=x" not in text
        assert set(re.findall(r"<script[^>]*>", text)) == {
            '<script src="/assets/report.js" defer>',
            '<script src="/assets/view.js" defer>',
        }
    _, text, _ = ask(server, "/?open=first/eval/0/0")
    assert text.count("&lt;script&gt;window.owned=1") > 10


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1", "", "10.0.0.1:{port}"]
)
def test_a_name_that_is_not_ours_is_refused(server: ViewServer, host: str) -> None:
    status, text, _ = ask(server, headers={"Host": host.format(port=server.server_port)})
    assert status == 421 and "cytology" not in text and "case-1" not in text


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_our_own_names_are_answered(server: ViewServer, host: str) -> None:
    assert ask(server, headers={"Host": host.format(port=server.server_port)})[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_reading_is_offered(server: ViewServer, method: str) -> None:
    assert ask(server, method=method)[0] == 501


def test_head_is_get_without_content(server: ViewServer) -> None:
    status, text, headers = ask(server, method="HEAD")
    assert (status, text) == (200, "") and int(headers["Content-Length"]) > 1000


def test_with_a_token_whoever_lacks_it_sees_nothing(runs: dict[str, Path]) -> None:
    with serving(ViewServer(TrajectoryIndex(runs), host="127.0.0.1", port=0, token="sesame street")) as server:
        for headers in ({}, {"Authorization": "Bearer guess"}, {"Cookie": "medrl-view=guess"}):
            status, text, _ = ask(server, headers=headers)
            assert status == 401 and "case-" not in text
        assert ask(server, "/assets/view.js")[0] == 401
        assert ask(server, headers={"Authorization": "Bearer sesame street"})[0] == 200
        status, _, given = ask(server, "/\\elsewhere.example/", token="sesame street", kind="eval")
        assert (status, given["Location"]) == (303, "/elsewhere.example/?kind=eval")
        assert "HttpOnly" in given["Set-Cookie"] and "SameSite=Strict" in given["Set-Cookie"]
        assert ask(server, headers={"Cookie": given["Set-Cookie"].split(";")[0]})[0] == 200


def test_steps_that_a_run_adds_are_there_on_the_next_request(growing: ViewServer) -> None:
    second = growing.index.runs["second"]
    assert len(found(growing, run="second")) == 3
    write_step(second, a_training_step(2, 0.5))
    assert found(growing, run="second")[0] == "second/train/2/0"
    write_step(second, a_training_step(2, 0.5, 0.25))  # as a resumed run writes a step anew
    assert len(found(growing, run="second", step_min=2)) == 3


def test_a_damaged_file_is_named_and_the_others_are_shown(growing: ViewServer) -> None:
    step_path(growing.index.runs["first"], 1).write_bytes(b"PAR1")
    _, text, _ = ask(growing)
    assert "step_000001.parquet cannot be read as Parquet" in text and "case-2" in text


def test_entities_are_those_that_the_tasks_name(runs: dict[str, Path], tmp_path: Path) -> None:
    from entities.tree import EntityTree

    tree = tmp_path / "tree.csv"
    tree.write_text("id,name,synonyms\nE1,neoplasm,mass\nE2,cyst,\n")
    with serving(ViewServer(TrajectoryIndex(runs, tree=EntityTree.load(tree)), host="127.0.0.1", port=0)) as server:
        assert len(found(server, entity="neoplasm", kind="train")) == 11  # 5 + 3 + 3
        assert found(server, entity="cyst") == []
        assert "neoplasm" in ask(server)[1]


def test_curves_of_several_runs_are_laid_over_one_another(server: ViewServer) -> None:
    _, text, _ = ask(server, "/curves", metric=["reward/mean", "loss/entropy"])
    labels = re.findall(r'aria-label="([^"]*)" data-readings', text)
    assert [label.split(":")[0] for label in labels] == ["reward/mean", "loss/entropy"]
    assert "first 0 at step 0, 0.300 at step 3; second 0 at step 0, 0.600 at step 3" in labels[0]
    assert ask(server, "/curves", metric="reward/mean", run="second", log=1)[1].count("second") > 1
    status, text, _ = ask(server, "/curves", metric="nothing")
    assert status == 400 and "no run has recorded &#x27;nothing&#x27;; there are reward/mean, loss/entropy" in text


def test_folders_are_found_in_the_one_that_is_named_and_names_stay_apart(tmp_path: Path) -> None:
    make_runs(tmp_path)
    write_step(tmp_path / "suite" / "medqa", a_training_step(0, 1.0))
    write_step(tmp_path / "again" / "first", a_training_step(0, 1.0))
    assert list(find_runs([tmp_path])) == ["again/first", "first", "second", "suite/medqa"]
    assert list(find_runs([tmp_path / "first", tmp_path / "again" / "first"])) == ["first", "again/first"]


def test_what_holds_nothing_to_look_at_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trajectories").mkdir()
    for folder, said in (
        (tmp_path, "holds neither trajectories/*.parquet nor metrics.jsonl"),
        (tmp_path / "gone", "is not a folder"),
    ):
        with pytest.raises(LogError, match=re.escape(said)):
            find_runs([folder])
        assert main(["view", str(folder), "--no-browser"]) == 2
        assert said in capsys.readouterr().err


def test_another_host_needs_a_token(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDRL_VIEW_TOKEN", raising=False)
    assert main(["view", str(runs["first"]), "--host", "0.0.0.0", "--no-browser"]) == 2
    assert "set MEDRL_VIEW_TOKEN to a token" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_its_address_and_ctrl_c_ends_it_cleanly(runs: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "rl.cli", "view", *map(str, runs.values()), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        said = process.stdout.readline()
        match = re.search(r"first, second: (http://127\.0\.0\.1:\d+/)", said)
        assert match, said
        with urllib.request.urlopen(match[1], timeout=60) as reply:
            assert "13</b> trajectories" in reply.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


def test_a_replay_is_shown_with_the_roles_of_its_own_rewards(runs: dict[str, Path], tmp_path: Path) -> None:
    replay = tmp_path / "replay"
    write_step(replay, a_training_step(1, 0.5, 1.0))
    scorers = {"facts": {"version": "v2", "weight": 2.0, "gate": False}}
    (replay / "replay.json").write_text(json.dumps({"source": str(runs["first"]), "scorers": scorers}))
    with serving(ViewServer(TrajectoryIndex(find_runs([replay])), host="127.0.0.1", port=0)) as server:
        assert "weight 2" in ask(server, open=quote("replay/train/1/0", safe="/"))[1]
