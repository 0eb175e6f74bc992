"""The deployments of a table: which flows there are on a server, when they run, and how many at a time. `latent serve` and prefect.yaml are both made of them.

    python -m latent.flows.deployments [--config config.toml] [--pool latent] [--seen-as PATH] [--force]

writes prefect.yaml, from which `prefect deploy --all` registers them for a work pool; `make deploy` does both. Registers nothing itself. A prefect.yaml
that someone else wrote, or edited, stays as it is without --force.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.objects import ConcurrencyLimitStrategy as Strategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from latent.config import Config, load
from latent.errors import ConfigError, EngineError, PipelineError, shown
from latent.flows.analyze import analyze
from latent.flows.embed import backfill, embed, maintain, nightly
from latent.flows.evaluate import evaluate
from latent.flows.prefect_server import HEARTBEAT, configured_server, on_loopback, require_answer

# One run at a time of each, for each table. A run that comes while another is under way is cancelled, not queued: the next one sees all changes
# anyway. A backfill may be of another source, so it waits for its turn.
FLOWS: Mapping[Flow[..., Any], Strategy] = {
    nightly: Strategy.CANCEL_NEW,
    backfill: Strategy.ENQUEUE,
    maintain: Strategy.CANCEL_NEW,
    analyze: Strategy.CANCEL_NEW,
    evaluate: Strategy.CANCEL_NEW,
    embed: Strategy.CANCEL_NEW,
}

SIMPLE = "prefect:simple"
NOTE = """\
# What `prefect deploy --all --no-prompt` registers, in the folder of config.toml. Written by `make deploy` from
# flows/deployments.py and config.toml: change those. The work pool must be there, and its workers need latent installed.
"""
DIGEST = "# Who edits it is asked before it is replaced. As written, sha256: "


def deployments(config: str, settings: Config, overrides: Mapping[str, Any]) -> list[RunnerDeployment]:
    """Of the table that the settings name. `config` is the path under which the runs find them."""
    schedule, table = settings.schedule, settings.table.name
    crons = {nightly.name: schedule.nightly, analyze.name: schedule.analyze}
    made = [
        each.to_deployment(
            name=table,
            schedule=Cron(cron, timezone=schedule.timezone, parameters={"reason": "scheduled"}, slug=each.name) if cron else None,
            parameters={"config": config, "overrides": dict(overrides), "reason": "by hand"},
            tags=["latent", table],
            version=version("latent"),
            version_type=cast(
                "Any", SIMPLE
            ),  # the enum it is of is not public; left out, Prefect asks git for a version and stores the remote's address
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for each, strategy, cron in ((flow, strategy, crons.get(flow.name, "")) for flow, strategy in FLOWS.items())
    ]
    return cast("list[RunnerDeployment]", made)


def prefect_yaml(made: list[RunnerDeployment], pool: str) -> str:
    """The deployments as `prefect deploy` reads them."""
    entries = [_entry(each) | {"work_pool": {"name": pool, "job_variables": {"env": dict(HEARTBEAT)}}} for each in made]
    entire: str = yaml.safe_dump(
        {"name": "latent", "pull": [], "deployments": entries}, sort_keys=False, allow_unicode=True, width=120
    )
    return f"{NOTE}{DIGEST}{_digest(entire)}\n{entire}"


def _entry(made: RunnerDeployment) -> dict[str, Any]:
    crons = [each.model_dump(mode="json", include={"schedule", "parameters", "slug"}) for each in made.schedules or []]
    strategy = made.concurrency_options
    return {
        "name": made.name,
        "version": made.version,
        "version_type": SIMPLE,
        "tags": made.tags,
        "description": made.description,
        "entrypoint": made.entrypoint,
        "parameters": made.parameters,
        "schedules": [
            {"cron": c["schedule"]["cron"], "timezone": c["schedule"]["timezone"], "parameters": c["parameters"], "slug": c["slug"]}
            for c in crons
        ],
        "concurrency_limit": {
            "limit": made.concurrency_limit,
            "collision_strategy": strategy.collision_strategy.value if strategy else None,
        },
    }


def main() -> None:
    """Write prefect.yaml. Exit code 1 and a line, and nothing written, if the config is wrong, no server answers, or the file is not ours."""
    asked = argparse.ArgumentParser(prog="python -m latent.flows.deployments")
    asked.add_argument("--config", default="config.toml", help="the settings to read")
    asked.add_argument("--pool", default="latent", help="the work pool")
    asked.add_argument("--seen-as", default="", help="the settings' path on the machines of the workers, where it is another there")
    asked.add_argument("--to", default="prefect.yaml", help="the file to write")
    asked.add_argument("--force", action="store_true", help="replace the file even if someone else wrote or edited it")
    given = asked.parse_args()
    try:
        settings = load(given.config)
        if not (server := configured_server()):
            raise EngineError("no Prefect server is configured, so nothing can be registered: set PREFECT_API_URL")
        require_answer(server)
        if not given.seen_as and not on_loopback(server):
            raise ConfigError(
                f"--seen-as: expected where the workers of {shown(server)} find {given.config}, got nothing. "
                f"Give their path: make deploy SEEN_AS=/etc/latent/config.toml, or SEEN_AS={Path(given.config).absolute()}"
            )
        here = given.config if Path(given.config).is_absolute() else "{{ $PWD }}/" + given.config
        _write(Path(given.to), prefect_yaml(deployments(given.seen_as or here, settings, {}), given.pool), force=given.force)
        sys.stdout.write(f"{given.to}: runs in the pool {given.pool} read {given.seen_as or Path(given.config).absolute()}\n")
    except PipelineError as error:
        sys.exit(f"error: {error}")


def _write(path: Path, entire: str, *, force: bool) -> None:
    """Raises ConfigError for a file that is there and is not as this module wrote it."""
    if path.exists() and not force and not _is_ours(path.read_bytes()):
        raise ConfigError(
            f"{path}: expected a file as 'make deploy' wrote it, got another one. Remove it, or replace it with --force"
        )
    try:
        path.write_text(entire, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another with --to") from None


def _is_ours(written: bytes) -> bool:
    """Whether a file is as `prefect_yaml` wrote it, not edited since."""
    head, _, rest = written.decode("utf-8", "replace").replace("\r\n", "\n").partition(DIGEST)
    digest, _, entire = rest.partition("\n")
    return head == NOTE and digest == _digest(entire)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


if __name__ == "__main__":
    main()
