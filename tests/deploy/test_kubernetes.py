"""The Kubernetes manifests: rendered by kubectl, valid to the letter, and true to what the servers need."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dockerfile import ROOT, read_stages
from manifests import OVERLAYS, SERVICES, of_kind, render, settings_of
from prometheus_client import generate_latest

from halfreel_runtime.engine import Engine
from halfreel_runtime.metrics import ServerMetrics

# The oldest and the newest that the manifests are for.
VERSIONS = ("1.32", "1.37")
# By kind; of custom resources, which no version of Kubernetes knows.
SCHEMAS = {
    kind: json.loads((ROOT / "tests" / "deploy" / "schemas" / f"{kind.lower()}.json").read_text())
    for kind in ("ServiceMonitor", "PrometheusRule")
}


def check(manifest: dict[str, Any], version: str) -> None:
    if manifest["apiVersion"] == "monitoring.coreos.com/v1":
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def container_of(stateful_set: dict[str, Any]) -> dict[str, Any]:
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def stateful_sets(overlay: str) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("halfreel-"): each for name, each in of_kind(render(overlay), "StatefulSet").items()}


def environ_of(stateful_set: dict[str, Any]) -> dict[str, str]:
    """Its variables; what comes from elsewhere as it would come from there."""
    sources = {
        "HALFREEL_GATEWAY_EXECUTOR_ID": "halfreel-gateway-0",
        "HALFREEL_GATEWAY_DATABASE_URL": "postgresql://halfreel:secret@postgresql.data:5432/halfreel",
    }
    return {each["name"]: each.get("value") or sources[each["name"]] for each in container_of(stateful_set)["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid(overlay: str, version: str) -> None:
    objects = render(overlay)
    assert len(objects) > 15
    for each in objects:
        check(each, version)


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("StatefulSet", ("spec", "template", "spec", "containers", 0), {"livenesProbe": {}}),
        ("StatefulSet", ("spec", "template", "spec"), {"terminationGracePeriodSeconds": "long"}),
        ("ServiceMonitor", ("spec", "endpoints", 0), {"bearerToken": "x"}),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), {"form": "1m"}),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), {"for": "a minute"}),
        ("NetworkPolicy", ("spec",), {"egres": []}),
    ],
)
def test_a_misspelt_field_is_found(kind: str, path: tuple[str | int, ...], wrong: dict[str, Any]) -> None:
    manifest = copy.deepcopy(next(iter(of_kind(render("many"), kind).values())))
    place: Any = manifest
    for step in path:
        place = place[step]
    place.update(wrong)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest, VERSIONS[-1])


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("service", SERVICES)
def test_servers_take_their_settings_and_drain_in_time(overlay: str, service: str) -> None:
    stateful_set = stateful_sets(overlay)[service]
    pod = stateful_set["spec"]["template"]["spec"]
    container = container_of(stateful_set)
    settings = settings_of(service, environ_of(stateful_set))
    # Listening beyond loopback, so with all that this takes.
    assert settings.host == "0.0.0.0"
    assert not settings.allow_insecure_listen
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    for path in (settings.tls_certificate_file, settings.tls_key_file, settings.tokens_file):
        assert path is not None
        assert str(path.parent) in mounts
    assert pod["terminationGracePeriodSeconds"] >= settings.grace_s + 10
    image = read_stages(ROOT / "deploy" / "docker" / f"{container['image'].split(':')[0][9:]}.Dockerfile")[-1]
    ports = {str(each["containerPort"]) for each in container["ports"]}
    assert ports == set(image.one("EXPOSE").split())
    assert {f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"} == {image.one("USER")}
    # Every path that the image keeps something under is a volume here, for its root can't be written.
    assert set(json.loads(image.one("VOLUME"))) | {"/tmp"} <= set(mounts)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_and_probed_over_https(overlay: str) -> None:
    for stateful_set in stateful_sets(overlay).values():
        pod, container = stateful_set["spec"]["template"]["spec"], container_of(stateful_set)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
        assert {each["scheme"] for each in asked.values()} == {"HTTPS"}
        assert [asked[name]["path"] for name in asked] == ["/livez", "/livez", "/readyz"]
        for volume in pod["volumes"]:  # a server refuses secrets that others may read
            assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o440


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_model_server_has_a_gpu_and_the_gateway_none(overlay: str) -> None:
    limits = {name: container_of(each)["resources"]["limits"] for name, each in stateful_sets(overlay).items()}
    assert [limits[name].get("nvidia.com/gpu") for name in ("llm", "video", "gateway")] == [1, 1, None]


def test_servers_of_one_gpu_share_the_folder_of_their_turns() -> None:
    objects = render("one-gpu")
    claims, claimed = of_kind(objects, "PersistentVolumeClaim"), set()
    for service in ("llm", "video"):
        stateful_set = stateful_sets("one-gpu")[service]
        pod = stateful_set["spec"]["template"]["spec"]
        settings: Any = settings_of(service, environ_of(stateful_set))
        assert settings.turns == "auto"
        mounts = {Path(each["mountPath"]): each for each in container_of(stateful_set)["volumeMounts"]}
        # A folder of its user's own, which the server makes: the volume itself is its group's.
        mount = mounts[settings.turns_dir.parent]
        assert not {"readOnly", "subPath"} & set(mount)
        (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
        claim = volume["persistentVolumeClaim"]["claimName"]
        claimed.add((claim, settings.turns_dir))
        # One machine's disk, so both are on that machine; and no Pod's start gives the folder to the group.
        assert claims[claim]["spec"]["accessModes"] == ["ReadWriteOnce"]
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        settings = settings_of(service, environ_of(stateful_sets("many")[service]))
        assert settings.turns_dir is None  # a GPU for each
    assert len(claimed) == 1


# As user 10001, like the servers: takes the turn or waits for it, tells which, and keeps it to the end of its input.
TAKE_TURN = """
import os, sys
from pathlib import Path
from halfreel_runtime.turn import DeviceTurn
os.setgroups([10001]), os.setgid(10001), os.setuid(10001)
turn = DeviceTurn(Path(sys.argv[1]), "GPU-1", service="llm")
print("taken" if turn.try_acquire() else "waiting", flush=True)
print(turn.acquire(lambda: True), flush=True)
sys.stdin.read()
"""


@pytest.mark.namespaces
def test_a_volume_as_a_cluster_mounts_it_is_taken_for_turns() -> None:
    """It is root's, and of the group in fsGroup, who may write to it and whose its folders are."""
    with tempfile.TemporaryDirectory() as parent, contextlib.ExitStack() as exits:
        Path(parent).chmod(0o755)
        volume = Path(parent) / "volume"
        volume.mkdir()
        os.chown(volume, 0, 10001)
        volume.chmod(0o2775)

        def start() -> tuple[subprocess.Popen[str], IO[str]]:
            command = [sys.executable, "-c", TAKE_TURN, str(volume / "turns")]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            exits.enter_context(process)
            exits.callback(process.kill)
            assert process.stdout
            return process, process.stdout

        first, told = start()
        assert (told.readline(), told.readline()) == ("taken\n", "True\n")
        _, told = start()
        assert told.readline() == "waiting\n"
        first.kill()
        assert told.readline() == "True\n"


def test_the_alerts_are_those_that_prometheus_reads() -> None:
    (rule,) = of_kind(render("many"), "PrometheusRule").values()
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    assert rule["spec"] == yaml.safe_load(rules)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_gateway_calls_headless_services_that_are_there(overlay: str) -> None:
    objects = render(overlay)
    services = of_kind(objects, "Service")
    settings: Any = settings_of("gateway", environ_of(stateful_sets(overlay)["gateway"]))
    for address in (*settings.llm_addresses, *settings.video_addresses):
        host, port = address.split(":")
        name, namespace = host.removesuffix(".svc.cluster.local").split(".")
        service = services[name]
        assert service["metadata"]["namespace"] == namespace
        assert service["spec"]["clusterIP"] == "None"
        assert int(port) in [each["port"] for each in service["spec"]["ports"]]
    pods = {name: each["spec"]["template"] for name, each in of_kind(objects, "StatefulSet").items()}
    for name, service in services.items():
        assert service["spec"]["selector"].items() <= pods[name]["metadata"]["labels"].items()
        known = {each["name"] for each in pods[name]["spec"]["containers"][0]["ports"]}
        assert {each["targetPort"] for each in service["spec"]["ports"]} == known
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert set(budgets) == set(pods)
    for name, budget in budgets.items():
        assert budget["spec"]["selector"]["matchLabels"].items() <= pods[name]["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_gets_out_but_what_is_needed(overlay: str) -> None:
    policies = of_kind(render(overlay), "NetworkPolicy")
    assert policies["deny-all"]["spec"]["podSelector"] == {}
    for policy in policies.values():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policies["deny-all"]["spec"]
    assert not policies["halfreel-models"]["spec"].get("egress")
    allowed = {
        (next(iter(rule["to"][0]["podSelector"]["matchLabels"].values())), port["port"])
        for rule in policies["halfreel-gateway"]["spec"]["egress"]
        for port in rule["ports"]
    }
    assert allowed == {("halfreel-llm", 7601), ("halfreel-video", 7602), ("postgresql", 5432), ("kube-dns", 53)}


def test_autoscalers_ask_for_a_metric_that_the_servers_have() -> None:
    engine: Engine[Any] = Engine(name="test", max_waiting_count=1)
    names = generate_latest(ServerMetrics("llm", engine, None).registry).decode()
    scalers = of_kind(render("many"), "HorizontalPodAutoscaler")
    assert set(scalers) == {"halfreel-llm", "halfreel-video"}
    sets = of_kind(render("many"), "StatefulSet")
    for scaler in scalers.values():
        (metric,) = scaler["spec"]["metrics"]
        assert f"\n{metric['pods']['metric']['name']}{{" in names
        target = sets[scaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"]  # or each deployment would undo what the autoscaler did
    most = scalers["halfreel-video"]["spec"]["maxReplicas"]
    settings: Any = settings_of("gateway", environ_of(stateful_sets("many")["gateway"]))
    assert settings.scene_concurrency == most
    assert stateful_sets("many")["gateway"]["spec"]["replicas"] == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_page_tells_how_to_make_every_secret(overlay: str) -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    made = {
        name: set(re.findall(r"--from-(?:file|literal)=([\w.]+)=", line))
        for name, line in re.findall(r"^create (\S+) (.+)$", page, re.MULTILINE)
    }
    objects = render(overlay)
    needed = [
        (each["authorization"]["credentials"]["name"], each["authorization"]["credentials"]["key"])
        for monitor in of_kind(objects, "ServiceMonitor").values()
        for each in monitor["spec"]["endpoints"]
    ]
    for stateful_set in of_kind(objects, "StatefulSet").values():
        paths = environ_of(stateful_set).values()
        container = container_of(stateful_set)
        volumes = {each["name"]: each.get("secret") for each in stateful_set["spec"]["template"]["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            if volumes[mount["name"]]:
                secret = volumes[mount["name"]]["secretName"]
                under = f"{mount['mountPath']}/"
                needed += [(secret, path.removeprefix(under)) for path in paths if path.startswith(under)]
        for variable in container["env"]:
            if "secretKeyRef" in variable.get("valueFrom", {}):
                needed.append(
                    (variable["valueFrom"]["secretKeyRef"]["name"], variable["valueFrom"]["secretKeyRef"]["key"])
                )
    assert set(made) == {secret for secret, _ in needed}
    for secret, key in needed:
        assert key in made[secret], f"{secret} has no {key}"
