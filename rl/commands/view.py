"""The command ``medrl view``: arguments, and the address that is printed."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path
from typing import Any


def add_view_commands(commands: Any) -> None:
    """Add the command to the parser of ``medrl``."""
    view = commands.add_parser("view", help="look at trajectories and curves of runs in a browser")
    view.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs, replays, evaluations, or ones that hold some",
    )
    view.add_argument("--host", default="127.0.0.1", help="any other than a local one needs MEDRL_VIEW_TOKEN set")
    view.add_argument("--port", type=int, default=8100, help="default 8100; 0 takes a free one")
    view.add_argument("--tree", type=Path, metavar="FILE", help="entity tree: filter by the entities that tasks name")
    view.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    view.set_defaults(command=_view)


def _view(arguments: argparse.Namespace) -> int:
    from entities.tree import EntityTree
    from rl.listen import check_free, check_guarded, wait_for_signal
    from rl.view.index import TrajectoryIndex
    from rl.view.runs import find_runs
    from rl.view.server import TOKEN_VARIABLE, ViewServer

    runs = find_runs(arguments.runs)
    token = os.environ.get(TOKEN_VARIABLE, "")
    check_guarded(arguments.host, token=token, variable=TOKEN_VARIABLE)
    check_free(arguments.host, arguments.port)
    tree = EntityTree.load(arguments.tree) if arguments.tree else None
    index = TrajectoryIndex(runs, tree=tree)
    with ViewServer(index, host=arguments.host, port=arguments.port, token=token) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=index.snapshot, daemon=True).start()  # so that the first page need not wait
        print(f"{', '.join(runs)}: {server.url}  (Ctrl-C ends it)", flush=True)
        if not arguments.no_browser:
            _open_browser(server.url)
        wait_for_signal()
        server.shutdown()
    return 0


def _open_browser(url: str) -> None:
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()  # a browser in the terminal would block
