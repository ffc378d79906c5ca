"""The dashboard that is looked at first: health, requests, servers.

Names are those of docs/metrics.md. It does not know Grafana's format.
"""

from __future__ import annotations

from board import GPU, OF_MODEL, SERVICE, Board, Row, one, per_second, quantiles
from panel import Panel, Query

OVERVIEW = Board(
    "halfreel-overview",
    "Halfreel: overview",
    "Whether everything serves, how much is asked, what fails.",
    (
        Row(
            "Health",
            (
                Panel(
                    "Servers that answer",
                    "Servers whose /metrics could be read last time. Fewer than you run: see HalfreelServerDown.",
                    "short",
                    one("count(halfreel_build_info{" + SERVICE + "})"),
                    "figure",
                    4,
                    5,
                ),
                Panel(
                    "Engines that serve",
                    "Model servers whose engine takes requests; loading, draining and dead ones are left out.",
                    "short",
                    one('sum(halfreel_engine_state{state="serving", ' + SERVICE + "})"),
                    "figure",
                    4,
                    5,
                ),
                Panel(
                    "Alerts that fire",
                    "Rules of deploy/prometheus/alerts.yml that fire now; docs/operations.md tells what to do.",
                    "short",
                    one('count(ALERTS{alertname=~"Halfreel.*", alertstate="firing"}) or vector(0)'),
                    "figure",
                    4,
                    5,
                ),
                Panel(
                    "Films in the making",
                    "Films that are accepted and have not ended.",
                    "short",
                    one('sum(max by (state) (halfreel_films{state=~"queued|writing_script|rendering|joining"}))'),
                    "figure",
                    4,
                    5,
                ),
                Panel(
                    "Fullest GPU",
                    "Part of its memory that is in use, by whichever process. Without a GPU: of the host's memory.",
                    "percentunit",
                    one(f"max(halfreel_gpu_memory_used_bytes{{{GPU}}} / halfreel_gpu_memory_total_bytes{{{GPU}}})"),
                    "figure",
                    4,
                    5,
                ),
                Panel(
                    "Longest wait",
                    "How long the oldest request waits for its turn at a model server.",
                    "s",
                    one(f"max(halfreel_queue_oldest_age_seconds{{{SERVICE}}})"),
                    "figure",
                    4,
                    5,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Requests",
                    "Calls that ended, whatever their status.",
                    "reqps",
                    one(per_second("halfreel_requests_total", "service, method"), "{{service}} {{method}}"),
                ),
                Panel(
                    "Failures by reason",
                    "Calls that ended otherwise than well, by the reason that the client was told. QUEUE_FULL asks for "
                    "more servers, INVALID_FIELD for a look at the client, INTERNAL for a look at the log.",
                    "reqps",
                    one(per_second("halfreel_requests_failed_total", "service, reason"), "{{service}} {{reason}}"),
                ),
                Panel(
                    "Duration of calls",
                    "From a call's arrival to its end; a generation's includes its time in the queue.",
                    "s",
                    quantiles("halfreel_request_duration_seconds", "service, method", of_model=False),
                ),
                Panel(
                    "Running and waiting",
                    "Requests that model servers work on, and those behind them.",
                    "short",
                    (
                        Query(f"sum by (service) (halfreel_requests_running{{{SERVICE}}})", "{{service}} running"),
                        Query(f"sum by (service) (halfreel_requests_waiting{{{SERVICE}}})", "{{service}} waiting"),
                    ),
                ),
                Panel(
                    "Time in the queue",
                    "How long requests waited before a model server began with them.",
                    "s",
                    quantiles("halfreel_queue_wait_seconds", "service"),
                ),
                Panel(
                    "Calls open",
                    "Calls that run now, watchers included.",
                    "short",
                    one(f"sum by (service, method) (halfreel_calls_open{{{SERVICE}}})", "{{service}} {{method}}"),
                ),
            ),
        ),
        Row(
            "Servers",
            (
                Panel(
                    "Where the weights are",
                    "1 for the state that each model is in: loading, awake, asleep or on its way.",
                    "short",
                    one(
                        f"max by (service, instance, state) (halfreel_model_state{{{SERVICE}}} == 1 {OF_MODEL})",
                        "{{service}} {{instance}} {{state}}",
                    ),
                ),
                Panel(
                    "Spans of traces",
                    "Spans that the collector took, or did not; both stay zero while no trace_endpoint is set.",
                    "ops",
                    one(per_second("halfreel_trace_spans_total", "service, outcome"), "{{service}} {{outcome}}"),
                ),
                Panel(
                    "Resident memory of the processes",
                    "What each server's process holds of the host's memory.",
                    "bytes",
                    one(f"halfreel_process_resident_bytes{{{SERVICE}}}", "{{service}} {{instance}}"),
                ),
                Panel(
                    "Versions",
                    "What runs where.",
                    "short",
                    one(f"sum by (service, instance, version) (halfreel_build_info{{{SERVICE}}})"),
                    "table",
                    12,
                ),
                Panel(
                    "Models",
                    "What is served, in which arithmetic, on which device.",
                    "short",
                    one(
                        "sum by (service, instance, model, dtype, device) "
                        f'(halfreel_model_info{{{SERVICE}, model=~"$model"}})'
                    ),
                    "table",
                    12,
                ),
            ),
        ),
    ),
)
