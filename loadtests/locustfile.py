"""What Locust loads: the storm's arguments, its client and shape, and a file with exact figures.

Runs by itself, too: `locust -f loadtests/locustfile.py`, with libpq's environment for the server.
Not here: servers (`run.py`), what a client does (`shapes.py`). Next on the path: `run.py`.
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtests.figures import Recorder
from loadtests.loopback import check_loopback
from loadtests.shapes import TABLE_SQL, Storm, StormClient, StormShape
from loadtests.users.postgres import make_cooperative

__all__ = ["StormClient", "StormShape"]

recorder = Recorder()


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Add the storm's arguments; each can be given in the environment, too."""
    group = parser.add_argument_group("storm")
    add = group.add_argument
    add("--clients", type=int, env_var="STORM_CLIENTS", default=1000, help="most at a time")
    add("--rate", type=float, env_var="STORM_RATE", default=200, help="clients that come a second")
    add("--seconds", type=float, env_var="STORM_SECONDS", default=15, help="time they come for")
    add("--stay", type=float, env_var="STORM_STAY", default=4, help="seconds each stays, idle")
    add("--statement", env_var="STORM_STATEMENT", default="", help="SQL to add to each transaction")
    add("--figures-file", env_var="STORM_FIGURES_FILE", default="", help="where to write figures")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Make the table and the storm; a server that cannot be used ends Locust with a line."""
    check_loopback(os.environ)
    make_cooperative()
    try:
        with closing(psycopg2.connect("")) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(TABLE_SQL)
    except psycopg2.Error as error:
        raise SystemExit(f"loadtests: the server cannot be used: {error}") from None
    assert environment.parsed_options is not None
    StormClient.storm = Storm.planned(environment.parsed_options)


@events.request.add_listener
def record(
    request_type: str,
    name: str,
    response_time: float,
    exception: Exception | None,
    context: dict[str, float],
    **_: Any,
) -> None:
    """Keep one request's exact figures."""
    error = None if exception is None else f"{exception}" or type(exception).__name__
    recorder.add(request_type, name, response_time, context["service_ms"], error)


@events.quitting.add_listener
def write_figures(environment: Environment, **_: Any) -> None:
    """Write all figures as JSON, if a file was asked for."""
    options = environment.parsed_options
    if options is None or not options.figures_file:
        return
    storm = StormClient.storm
    figures = {
        "plan": {
            "clients": options.clients,
            "rate": options.rate,
            "seconds": options.seconds,
            "stay": options.stay,
            "lives": storm.arrivals.count,
        },
        "ended": storm.ended,
        "connected_most": storm.connected_most,
        "elapsed_s": storm.elapsed_s,
        "locust_busy": storm.busy,
        "requests": recorder.rows(),
    }
    Path(options.figures_file).write_text(json.dumps(figures, indent=2) + "\n")
