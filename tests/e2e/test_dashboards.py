"""Dashboards, alerts and the page of metrics, held against the three real servers and the real Prometheus.

The servers run on a CPU. What only a GPU's driver tells comes from a stand-in: the runtime's own collector, with a
driver that answers from a list; it shows those four figures and nothing else, so that it hides no other panel's want.
"""

from __future__ import annotations

import contextlib
import http
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from fake_nvml import GPU_FIGURES, gpu_registry
from ports import free_port
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "provisioning" / "dashboards").glob("*.json"))
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
PAGE = ROOT / "docs" / "metrics.md"
SMALL = {"scene_count": 2, "scene_seconds": 1, "width_px": 64, "height_px": 64, "step_count": 4}
NAME = re.compile(r"\bhalfreel_\w+")
# Grafana's own variables, as it fills them in where all is picked.
PICKED = {"$__rate_interval": "5m", "$service": ".*", "$gpu": ".*", "$model": ".*"}
SCRAPE_WITHIN_S = 0.05


class Prometheus:
    """Prometheus, on a port of its own, reading everything each second."""

    def __init__(self, folder: Path, port: int, targets: list[str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "halfreel", "static_configs": [{"targets": targets}]}],
        }
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config))
        command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.targets = targets
        self.began = time.time()

    def ask(self, path: str, **arguments: object) -> Any:
        try:
            with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(arguments)}", timeout=10) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it still opens its store
                raise
            pytest.fail(f"{arguments}: {error.read().decode()}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def now(self, query: str) -> list[Any]:
        return list(self.ask("/api/v1/query", query=query)["result"])

    def values(self, query: str) -> list[float]:
        """All that the query gives from the beginning until now, but for NaN."""
        data = self.ask("/api/v1/query_range", query=query, start=self.began, end=time.time(), step=2)
        return [
            number for series in data["result"] for _, text in series["values"] if (number := float(text)) == number
        ]

    def wait_scraped(self) -> None:
        """Until every target has been read twice more."""
        deadline, since = time.monotonic() + 60, time.time()
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                last = self.now(f'min(timestamp(up{{job="halfreel"}} == 1)) and count(up == 1) == {len(self.targets)}')
                if last and float(last[0]["value"][1]) > since + 2:
                    return
            time.sleep(0.3)
        pytest.fail("Prometheus could not read every server")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@contextlib.contextmanager
def gpu_stand_in() -> Iterator[int]:
    """The port of an exporter that shows what a GPU's driver tells."""
    with pytest.MonkeyPatch.context() as patch:
        registry = gpu_registry(patch)

        class Figures:
            def collect(self) -> Iterator[Metric]:
                return (family for family in registry.collect() if family.name in GPU_FIGURES)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = generate_latest(Figures())  # type: ignore[arg-type]
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            server.server_close()


def load(stack: Any) -> pb.Film:
    """Some of everything: films that succeed, one that is cancelled, replies, one cancelled, mistakes, sleep, wake."""
    film = stack.create("a red circle over a blue sky", **SMALL)
    assert stack.wait_ended(film.film_id).state == pb.Film.STATE_SUCCEEDED
    left = stack.create("a green square", **{**SMALL, "scene_count": 1, "step_count": 100})
    for event in stack.watch(left.film_id):
        if event.HasField("scene_step"):
            break
    stack.gateway.CancelFilm(pb.CancelFilmRequest(film_id=left.film_id), timeout=10)
    with contextlib.suppress(grpc.RpcError):
        stack.gateway.GetFilm(pb.GetFilmRequest(film_id="0" * 32), timeout=10)
    with grpc.insecure_channel(f"127.0.0.1:{stack.ports['llm']}") as channel:
        llm = llm_pb2_grpc.LlmServiceStub(channel)
        message = llm_pb2.Message(role=llm_pb2.ROLE_USER, content="a film")
        for _ in range(20):  # a short reply may be over before the cancel arrives
            call = llm.Generate(llm_pb2.GenerateRequest(messages=[message]))
            if any(response.HasField("text_delta") for response in call):
                call.cancel()
            time.sleep(0.2)
            if "halfreel_cancel_latency_seconds_count" in positive(stack.metrics_ports["llm"]):
                break
        with contextlib.suppress(grpc.RpcError):
            list(llm.Generate(llm_pb2.GenerateRequest()))
    for name in ("llm", "video"):
        with grpc.insecure_channel(f"127.0.0.1:{stack.ports[name]}") as channel:
            memory = gpu_pb2_grpc.MemoryServiceStub(channel)
            memory.Sleep(gpu_pb2.SleepRequest(), timeout=30)
            memory.Wake(gpu_pb2.WakeRequest(), timeout=30)
    again = stack.create("a yellow star", **{**SMALL, "scene_count": 1})
    return stack.wait_ended(again.film_id)


@pytest.fixture(scope="module")
def loaded(stack: Any) -> pb.Film:
    return load(stack)


@pytest.fixture(scope="module")
def prometheus(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with gpu_stand_in() as gpu_port:
        targets = [f"127.0.0.1:{port}" for port in (*stack.metrics_ports.values(), gpu_port)]
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), free_port(), targets)
        try:
            prometheus.wait_scraped()  # before the load: a counter's growth shows between two readings
            film = load(stack)
            assert film.state == pb.Film.STATE_SUCCEEDED
            prometheus.film_id = film.film_id  # type: ignore[attr-defined]
            prometheus.wait_scraped()
            yield prometheus
        finally:
            prometheus.close()


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def filled_in(expr: str) -> str:
    for name, value in PICKED.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def queries() -> Iterator[tuple[str, str]]:
    """Every query of every panel, by where it stands."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']} {target['refId']}", filled_in(target["expr"])


@pytest.mark.prometheus
@pytest.mark.timeout(420)
def test_every_query_of_every_panel_has_data(prometheus: Prometheus) -> None:
    assert len(list(queries())) > 60
    without = {place: query for place, query in queries() if not prometheus.values(query)}
    assert not without, json.dumps(without, indent=1)


@pytest.mark.prometheus
def test_every_alert_can_be_asked_and_none_fires_for_want_of_anything(prometheus: Prometheus) -> None:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            prometheus.now(rule["expr"])
    firing = {each["metric"]["alertname"] for each in prometheus.now('ALERTS{alertstate="firing"}')}
    assert not firing & {"HalfreelServerDown", "HalfreelNotServing", "HalfreelWakeFailed", "HalfreelFilmsFail"}


@pytest.mark.prometheus
def test_no_query_names_a_metric_that_does_not_exist(prometheus: Prometheus) -> None:
    there = set(prometheus.ask("/api/v1/label/__name__/values"))
    rules = [rule["expr"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    variables = [
        variable["query"]["query"]
        for path in DASHBOARDS
        for variable in json.loads(path.read_text())["templating"]["list"]
        if variable["type"] == "query"
    ]
    asked = {name for text in (*(query for _, query in queries()), *rules, *variables) for name in NAME.findall(text)}
    absent = {row.name for row in rows() if "TLS" in row.servers}  # this stack has no certificate
    assert asked - there <= absent, asked - there


@pytest.mark.prometheus
def test_an_exemplar_leads_from_a_slow_step_to_its_film(prometheus: Prometheus) -> None:
    found = prometheus.ask(
        "/api/v1/query_exemplars",
        query="halfreel_denoise_step_duration_seconds_bucket",
        start=prometheus.began,
        end=time.time() + 60,
    )
    traces = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
    assert prometheus.film_id in traces  # type: ignore[attr-defined]


def test_every_panel_says_what_it_shows() -> None:
    assert len(DASHBOARDS) == 4
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        assert [each["name"] for each in board["templating"]["list"]] == ["datasource", "service", "gpu", "model"]
        titles = [panel["title"] for panel in panels(path)]
        assert len(titles) == len(set(titles))
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in panels(path):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            assert panel["description"] != panel["title"]
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"


class Row:
    """One metric as docs/metrics.md tells it."""

    def __init__(self, line: str) -> None:
        name, self.type, labels, self.servers, self.text = (cell.strip() for cell in line.strip("|").split("|"))
        self.name = name.strip("`")
        self.labels = set(re.findall(r"`(\w+)`", labels))

    def of(self, service: str) -> bool:
        """Whether the server shows it here, without TLS and without a GPU."""
        return " with " not in self.servers and (self.servers == "all" or service in self.servers.split(", "))


def rows() -> list[Row]:
    return [Row(line) for line in PAGE.read_text().splitlines() if line.startswith("| `halfreel_")]


def scraped(port: int) -> dict[str, tuple[str, set[str] | None]]:
    """Type and label names of all that a server shows; None for the labels of a metric without a series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    found = {}
    for family in families:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels if family.samples else None)
    return found


@pytest.mark.parametrize("service", ["gateway", "llm", "video"])
def test_the_page_of_metrics_is_what_the_servers_show(stack: Any, loaded: pb.Film, service: str) -> None:
    assert len({row.name for row in rows()}) == len(rows())
    wanted = {row.name: (row.type, row.labels) for row in rows() if row.of(service)}
    found = scraped(stack.metrics_ports[service])
    assert set(found) == set(wanted)
    for name, (kind, labels) in found.items():
        assert (kind, labels if labels is not None else wanted[name][1]) == wanted[name], name


def test_the_page_of_metrics_has_a_gpus_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    families = text_string_to_metric_families(generate_latest(gpu_registry(monkeypatch)).decode())
    found = {
        f"{family.name}_total" if family.type == "counter" else family.name: (
            family.type,
            set(family.samples[0].labels),
        )
        for family in families
        if family.name.startswith("halfreel_gpu_") and family.samples
    }
    wanted = {row.name: (row.type, row.labels) for row in rows() if row.name.startswith("halfreel_gpu_")}
    assert found == wanted


def test_a_sleeping_server_is_read_like_any_other(stack: Any, loaded: pb.Film) -> None:
    port = stack.metrics_ports["video"]
    with grpc.insecure_channel(f"127.0.0.1:{stack.ports['video']}") as channel:
        memory = gpu_pb2_grpc.MemoryServiceStub(channel)
        memory.Sleep(gpu_pb2.SleepRequest(), timeout=30)
        asleep = scraped_bytes(port).decode()
        memory.Wake(gpu_pb2.WakeRequest(), timeout=30)
    for text, state in ((asleep, "asleep"), (scraped_bytes(port).decode(), "awake")):
        assert f'halfreel_model_state{{service="video",state="{state}"}} 1.0' in text
        assert 'halfreel_engine_state{service="video",state="serving"} 1.0' in text  # asleep is serving


def test_a_scrape_of_each_server_is_soon_done(stack: Any, loaded: pb.Film) -> None:
    for name, port in stack.metrics_ports.items():
        medians: list[float] = []
        # Others use this machine as well: the quietest window tells what a scrape takes.
        while min(medians, default=SCRAPE_WITHIN_S) >= SCRAPE_WITHIN_S and len(medians) < 10:
            seconds = []
            for _ in range(15):
                began = time.monotonic()
                scraped_bytes(port)
                seconds.append(time.monotonic() - began)
            medians.append(sorted(seconds)[7])
        assert min(medians) < SCRAPE_WITHIN_S, (name, medians)


def positive(port: int) -> set[str]:
    """Names of the samples that are above zero."""
    families = text_string_to_metric_families(scraped_bytes(port).decode())
    return {sample.name for family in families for sample in family.samples if sample.value > 0}


def scraped_bytes(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        return bytes(page.read())
