"""infra/: its files say what their formats allow, and the services of compose.yaml run as they are written there."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml
from conftest import Desk, words
from fastapi.testclient import TestClient
from infra.house import BIN, INFRA, MOUNTED, house_of
from prometheus_client import generate_latest

from latent.config import Config, load
from latent.monitoring.metrics import REGISTRY, LastRun, TableCollector, TableFigures, registry_of
from latent.search import SearchTable
from latent.search.http_server import service

KUBERNETES = "1.34"
SECRETS = {"STORE_SECRET": "store-pass", "RAY_AUTH_TOKEN": "a" * 64, "POSTGRES_PASSWORD": "base-pass", "GRAFANA_PASSWORD": "g"} | {
    "LATENT_SEARCH_TOKEN": "search-pass"
}


def tool(name: str) -> str:
    """A program of the environment or the machine; skips where it is missing."""
    found = shutil.which(name, path=f"{BIN}:{os.environ['PATH']}")
    return found or pytest.skip(f"no {name} here")


def printed(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the files ------------------------------------------------------------------------------------------------------


def test_the_dockerfile_has_nothing_that_hadolint_would_change() -> None:
    assert printed(tool("hadolint"), str(INFRA / "Dockerfile")) == ""


def test_all_that_the_dockerfile_copies_is_let_in_and_there() -> None:
    let_in = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY ((?!--from).+) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    copied = {source for line in copies for source in line.split()}
    assert copied == let_in
    assert all((INFRA.parent / source).exists() for source in copied)


def test_the_extra_for_kuberay_has_the_versions_of_the_other_requirements() -> None:
    pins = [
        dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE))
        for path in (INFRA / "requirements-ray.txt", INFRA.parent / "requirements.txt")
    ]
    both = pins[0].keys() & pins[1].keys()
    assert "ray" in both
    assert {name: pins[0][name] for name in both} == {name: pins[1][name] for name in both}


def test_compose_expands_with_every_secret_from_outside_and_publishes_on_loopback_only() -> None:
    compose = tool("docker-compose")
    command = [compose, "--file", str(INFRA / "compose.yaml"), "--profile", "*", "config", "--format", "json"]
    bare = {name: value for name, value in os.environ.items() if name not in SECRETS}
    empty = subprocess.run([*command, "--env-file", "/dev/null"], capture_output=True, text=True, env=bare, check=False)
    assert empty.returncode != 0
    expanded = json.loads(printed(*command, **SECRETS))
    written = (INFRA / "compose.yaml").read_text()
    for name in SECRETS:
        assert f"{{{name}:?" in written, f"{name} is asked for"
    for name, each in expanded["services"].items():
        assert each["healthcheck"]["test"], name
        assert each["image"] == "latent" or re.fullmatch(r"\S+:v?\d+\.\d+\S*", each["image"]), f"{name} names a version"
        assert {port["host_ip"] for port in each.get("ports", [])} <= {"127.0.0.1"}, name
        limits = each["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0, name
        assert int(limits["memory"]) >= 512 << 20, name
        assert each["logging"] == {"driver": "json-file", "options": {"max-file": "5", "max-size": "10m"}}, name
    assert expanded["services"]["prefect"]["environment"]["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "events,flow_runs"


def documents(text: str) -> list[dict]:
    return [each for each in yaml.safe_load_all(text) if each]


def rendered(overlay: str, kubernetes: Path = INFRA / "kubernetes") -> list[dict]:
    return documents(printed(tool("kubectl"), "kustomize", str(kubernetes / "overlays" / overlay)))


def pods(manifests: list[dict]) -> dict[str, dict]:
    """The pod templates of the manifests by name, with the labels that KubeRay and Deployments give their pods."""
    found = {}
    for each in manifests:
        name, spec = each["metadata"]["name"], each.get("spec", {})
        if each["kind"] == "Deployment":
            found[name] = spec["template"]
        if each["kind"] == "CronJob":
            found[name] = spec["jobTemplate"]["spec"]["template"]
        if each["kind"] == "RayCluster":
            groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
            for group, given in groups.items():
                given["template"]["metadata"]["labels"] |= {
                    "ray.io/cluster": name,
                    "ray.io/node-type": "head" if group == "head" else "worker",
                }
                found[f"ray-{group}"] = given["template"]
    return found


def selects(selector: dict, labels: dict) -> bool:
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []) if each["operator"] == "In"
    )


def may_reach(manifests: list[dict], pod: dict, port: int, *, address: str = "", namespace: dict | None = None) -> bool:
    """Whether the policies let a pod speak to an address, or to any pod of a namespace with these labels, by TCP."""
    rules = [
        rule
        for each in manifests
        if each["kind"] == "NetworkPolicy" and selects(each["spec"]["podSelector"], pod["metadata"]["labels"])
        for rule in each["spec"].get("egress", [])
        if "ports" not in rule or any((p["protocol"], p["port"]) == ("TCP", port) for p in rule["ports"])
    ]

    def within(peer: dict) -> bool:
        if "ipBlock" in peer and address:
            block = peer["ipBlock"]
            there = ipaddress.ip_address(address)
            return there in ipaddress.ip_network(block["cidr"]) and not any(
                there in ipaddress.ip_network(each) for each in block.get("except", [])
            )
        return (
            namespace is not None and "podSelector" not in peer and selects(peer.get("namespaceSelector", {"none": 1}), namespace)
        )

    return any(within(peer) for rule in rules for peer in rule["to"])


@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_an_overlay_renders_to_what_kubernetes_takes_and_runs_nobody_with_rights(overlay: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    manifests = rendered(overlay)
    for each in manifests:
        if not each["apiVersion"].startswith("ray.io/"):
            kubernetes.validate(each, KUBERNETES, strict=True)
    templates = pods(manifests)
    ray = {name for name in templates if name.startswith("ray-")}
    assert ray == {"ray-head", "ray-cpu"} | ({"ray-gpu"} if overlay == "cuda" else set())
    assert templates.keys() - ray == {"latent-search", "latent-prefect-worker", "latent-backfill"}
    accounts = {each["metadata"]["name"] for each in manifests if each["kind"] == "ServiceAccount"}
    for template in templates.values():  # KubeRay's own schema leaves its pods to Kubernetes
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"} | template["metadata"], "spec": template["spec"]}
        kubernetes.validate(pod, KUBERNETES, strict=True)
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["serviceAccountName"] in accounts
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["image"].startswith("registry.example.com/latent:0.1.0-")
            assert {"requests", "limits"} <= container["resources"].keys()
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}
    assert not [each for each in manifests if each["kind"] == "Secret"]


def test_a_backfill_on_a_cluster_lets_nights_pass_ends_and_leaves_nothing_behind() -> None:
    (backfill,) = [each["spec"] for each in rendered("cpu") if each["kind"] == "CronJob"]
    assert backfill["suspend"], "nothing starts it by itself"
    job = backfill["jobTemplate"]["spec"]
    assert min(job["backoffLimit"], job["activeDeadlineSeconds"], job["ttlSecondsAfterFinished"]) > 0
    (container,) = job["template"]["spec"]["containers"]
    launcher = (INFRA / "ray-cluster.yaml").read_text()
    lines = [*container["args"], *launcher.splitlines(), *(INFRA / "README.md").read_text().splitlines()]
    runs = [line for line in lines if re.search(r"latent run\b.*--config", line)]
    assert len(runs) >= 2
    assert all("--backfill" in line for line in runs)


def test_a_changed_config_map_is_another_one_wherever_it_is_named(tmp_path: Path) -> None:
    shutil.copytree(INFRA / "kubernetes", tmp_path / "kubernetes")

    def named() -> dict[str, list[str]]:
        manifests = rendered("cuda", tmp_path / "kubernetes")
        there = {each["metadata"]["name"] for each in manifests if each["kind"] == "ConfigMap"}
        names = {
            pod: sorted(re.findall(r"latent-(?:config|environment)[\w-]*", json.dumps(template)))
            for pod, template in pods(manifests).items()
        }
        assert {name for each in names.values() for name in each} == there
        return names

    before = named()
    for name, old, new in (
        ("config.toml", "cpus_per_worker = 4", "cpus_per_worker = 2"),
        ("kustomization.yaml", "eu-central-1", "x"),
    ):
        file = tmp_path / "kubernetes/base" / name
        file.write_text(file.read_text().replace(old, new))
    after = named()
    assert set(before) == set(after)
    assert all(not set(before[pod]) & set(after[pod]) for pod in before)
    assert {pod for pod, names in before.items() if not names} == {"ray-head"}


def test_policies_let_pods_reach_names_identities_and_a_store_in_the_cluster(tmp_path: Path) -> None:
    manifests = rendered("cpu")
    store = {"kubernetes.io/metadata.name": "minio", "latent/holds-store": "true"}
    for name, pod in pods(manifests).items():
        assert may_reach(manifests, pod, 53, address="169.254.20.10"), f"{name}: NodeLocal DNSCache"
        if name == "ray-head":
            continue  # it touches no store
        assert may_reach(manifests, pod, 9000, namespace=store), f"{name}: a store in the cluster"
        assert not may_reach(manifests, pod, 9000, namespace={"kubernetes.io/metadata.name": "other"})
        assert may_reach(manifests, pod, 443, address="52.219.1.1"), f"{name}: a store outside"
        assert may_reach(manifests, pod, 80, address="169.254.170.23"), f"{name}: EKS Pod Identity"
        assert not may_reach(manifests, pod, 80, address="169.254.169.254"), f"{name}: the machine's own rights"
    shutil.copytree(INFRA / "kubernetes", tmp_path / "kubernetes")
    with (tmp_path / "kubernetes/overlays/cpu/kustomization.yaml").open("a") as overlay:
        overlay.write("components: [../../components/gke]\n")
    on_gke = rendered("cpu", tmp_path / "kubernetes")
    assert may_reach(on_gke, pods(on_gke)["ray-cpu"], 80, address="169.254.169.254")
    assert may_reach(on_gke, pods(on_gke)["latent-search"], 988, address="169.254.169.252")
    assert not may_reach(on_gke, pods(on_gke)["ray-head"], 80, address="169.254.169.254")


@pytest.mark.parametrize("overlay", ["cpu", "cuda"])
def test_a_drain_waits_for_every_pod_that_holds_a_night(overlay: str) -> None:
    manifests = rendered(overlay)
    budgets = [each["spec"] for each in manifests if each["kind"] == "PodDisruptionBudget"]
    assert all(budget["minAvailable"] == 1 for budget in budgets)
    for name, pod in pods(manifests).items():
        if name == "latent-backfill":
            continue  # it goes on from where it was cut off, on another node
        matching = [budget for budget in budgets if selects(budget["selector"], pod["metadata"]["labels"])]
        assert len(matching) == 1, f"{name}: two budgets for one pod refuse every eviction"
        if name != "latent-search":
            assert (
                pod["metadata"]["annotations"].items()
                >= {
                    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                    "karpenter.sh/do-not-disrupt": "true",
                }.items()
            ), name


def test_the_configs_of_the_manifests_are_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for overlay in ("cpu", "cuda"):
        maps = {
            each["metadata"]["name"].rpartition("-")[0]: each["data"] for each in rendered(overlay) if each["kind"] == "ConfigMap"
        }
        (tmp_path / "config.toml").write_text(maps["latent-config"]["config.toml"])
        for name, value in maps["latent-environment"].items():
            if name.startswith("LATENT_"):
                monkeypatch.setenv(name, value)
        settings = load(tmp_path / "config.toml")
        assert settings.ray.address == "latent-head-svc:6379"
        assert settings.ray.gpus_per_worker == (1 if overlay == "cuda" else 0)


def test_the_launcher_of_ray_takes_the_cluster_on_aws() -> None:
    pytest.importorskip("boto3")
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents((INFRA / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))  # against ray-schema.json
    assert config["available_node_types"]["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_prometheus_asks_services_that_there_are_where_they_answer() -> None:
    services = documents((INFRA / "compose.yaml").read_text())[0]["services"]
    (config,) = documents((INFRA / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    asked = {(name, sd["port"]) for job in jobs.values() for sd in job.get("dns_sd_configs", []) for name in sd["names"]}
    assert asked == {
        ("latent", int(services["latent"]["environment"]["LATENT_METRICS__LISTEN"].rpartition(":")[2])),
        ("search", 8000),
    }
    assert jobs["search"]["authorization"]["credentials_file"] == f"/run/secrets/{services['prometheus']['secrets'][0]}"
    if promtool := shutil.which("promtool"):
        printed(promtool, "check", "config", "--syntax-only", str(INFRA / "prometheus.yml"))
    mounted = {volume.partition(":")[2].removesuffix(":ro") for volume in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= mounted


def test_alerts_are_raised_for_what_is_wrong_and_only_then() -> None:
    (rules,) = documents((INFRA / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    named = {name for each in expressions for name in re.findall(r"\blatent_\w+", each)}
    known = told(generate_latest(REGISTRY).decode()) | table_metrics() | search_metrics()
    assert {re.sub(r"_total$", "", name) for name in named} <= {re.sub(r"_total$", "", name) for name in known}
    promtool = tool("promtool")
    printed(promtool, "check", "rules", str(INFRA / "alerts.yml"))
    printed(promtool, "test", "rules", str(INFRA.parent / "tests/infra/alerts.test.yml"))


def test_the_dashboard_shows_numbers_that_there_are() -> None:
    dashboard = json.loads((INFRA / "grafana/dashboard.json").read_text())
    (sources,) = documents((INFRA / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    panels = dashboard["panels"]
    targets = [target for panel in panels for target in panel["targets"]]
    assert {target["datasource"]["uid"] for target in targets} == {source["uid"] for source in sources["datasources"]}
    named = {name for target in targets for name in re.findall(r"\blatent_\w+", target["expr"])}
    runs = told(generate_latest(REGISTRY).decode())
    known = runs | table_metrics() | search_metrics()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert families <= known, families - known
    assert runs | table_metrics() <= families, "every number of a run and of the table is shown"
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells), "no panel lies over another"
    assert max(x for x, _ in cells) < 24


def table_metrics() -> set[str]:
    run = LastRun("done", 1.0, {"added": 1}, {"encoded": 1}, 1, 1.0)
    collector = TableCollector("docs", lambda: TableFigures(1.0, run, 0.97, 0.95))
    return told(generate_latest(registry_of(collector)).decode())


def search_metrics() -> set[str]:
    """Names of the search service's numbers, as it tells them before any search."""
    app = service(cast("SearchTable", SimpleNamespace(version=1, settings=Config().search)))
    with TestClient(app) as client:
        return told(client.get("/metrics").text)


def told(text: str) -> set[str]:
    return {name for name in re.findall(r"^# TYPE (latent_\w+) ", text, re.MULTILINE) if not name.endswith("_created")}


# --- the services ---------------------------------------------------------------------------------------------------


def needed() -> None:
    if os.geteuid() != 0:
        pytest.skip("root is needed to make namespaces")
    for name in ("unshare", "nsenter", "setpriv", "ip", "wget", "weed"):
        tool(name)
    if not list(Path("/usr/lib/postgresql").glob("*/bin")):
        pytest.skip("no PostgreSQL of Debian's here")


def test_the_services_of_compose_come_up_and_a_nightly_run_completes(
    desk_for: Callable[..., Desk], small_model: Path, tmp_path: Path
) -> None:
    needed()
    data = tmp_path / "volumes/data"
    shutil.copytree(small_model, data / "model")
    desk = desk_for(data, model=f"{MOUNTED}/data/model", more="[ray]\nworkers = 1\n")
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(100 + i, 200 + i)} for i in range(20)])
    command = [
        tool("docker-compose"),
        "--env-file",
        "/dev/null",
        "--file",
        str(INFRA / "compose.yaml"),
        "--profile",
        "*",
        "config",
        "--format",
        "json",
    ]
    services = json.loads(printed(*command, **SECRETS))["services"]
    with house_of(tmp_path, services) as house:
        house.up(["postgres", "store", "prefect", "ray-head", "ray-worker", "latent"])
        done = house.run("latent", "prefect", "deployment", "run", "nightly/docs", "--watch")
        assert done.returncode == 0, done.stdout + done.stderr + house.said("latent")
        assert not list((tmp_path / "volumes/prefect").glob("*.db")), "Prefect's state is in PostgreSQL"
        assert "Ray runtime started" not in house.said("latent"), "its log is of latent alone"
        assert "\x1b" not in house.said("latent")
        house.up(["search"])
        found = house.run("latent", "latent", "search", words(107, 207), "-k", "1", "--json")
        assert json.loads(found.stdout)["hits"][0]["doc_id"] == "d7", found.stderr
        asked = house.run(
            "latent", "python", "-c", "import urllib.request as u; print(u.urlopen('http://prefect:4200/api/metrics').read())"
        )
        assert "python_info" in asked.stdout, asked.stderr
        read = "import urllib.request as u; print(u.urlopen('http://prefect:4200/api/admin/settings').read().decode())"
        known = house.run("latent", "python", "-c", read)
        assert set(json.loads(known.stdout)["server"]["services"]["db_vacuum"]["enabled"]) == {"events", "flow_runs"}, known.stderr
        for name in reversed(list(house.running)):
            house.stop(name)
    assert not Path(f"/proc/{house.init}").exists()
