"""The dashboard of the language model: its speed and its requests.

Names are those of docs/metrics.md. It does not know Grafana's format.
"""

from __future__ import annotations

from board import OF_MODEL, RATE, Board, Row, model_per_second, of, one, quantiles
from panel import Panel, Query

LLM = Board(
    "halfreel-llm",
    "Halfreel: language model",
    "How fast scripts are written.",
    (
        Row(
            "Speed",
            (
                Panel(
                    "Time to first token",
                    "From the beginning of a reply to its first token: the prompt is read in it.",
                    "s",
                    quantiles("halfreel_time_to_first_token_seconds"),
                    width=6,
                ),
                Panel(
                    "Time per output token",
                    "Mean time between two tokens of a reply.",
                    "s",
                    quantiles("halfreel_time_per_output_token_seconds"),
                    width=6,
                ),
                Panel(
                    "Tokens",
                    "Tokens of prompts that were read, and tokens that were written.",
                    "cps",
                    (
                        Query(model_per_second("halfreel_output_tokens_total", "service"), "written"),
                        Query(model_per_second("halfreel_prompt_tokens_total", "service"), "read"),
                    ),
                    width=6,
                ),
                Panel(
                    "Stages",
                    "Prefill reads the prompt, decode writes the reply.",
                    "s",
                    of("llm", quantiles("halfreel_stage_duration_seconds", "stage")),
                    width=6,
                ),
            ),
        ),
        Row(
            "Requests",
            (
                Panel(
                    "Replies by status",
                    "Generate calls that ended.",
                    "reqps",
                    one(
                        'sum by (code) (rate(halfreel_requests_total{method="LlmService/Generate", service="llm"}'
                        f"{RATE}) {OF_MODEL})",
                        "{{code}}",
                    ),
                ),
                Panel(
                    "Queue",
                    "Replies that are written now, and requests that wait.",
                    "short",
                    (
                        Query(f'sum(halfreel_requests_running{{service="llm"}} {OF_MODEL})', "running"),
                        Query(f'sum(halfreel_requests_waiting{{service="llm"}} {OF_MODEL})', "waiting"),
                    ),
                ),
                Panel(
                    "Oldest wait",
                    "How long the oldest waiting request waits; growing without end asks for more servers.",
                    "s",
                    one(f'max(halfreel_queue_oldest_age_seconds{{service="llm"}} {OF_MODEL})', "oldest"),
                ),
                Panel(
                    "Cancel",
                    "From a request that nobody waits for any more to the end of its work: a token or two.",
                    "s",
                    of("llm", quantiles("halfreel_cancel_latency_seconds")),
                ),
                Panel(
                    "Since the last progress",
                    "For how long no running reply has gone on by a token.",
                    "s",
                    one(f'max(halfreel_progress_age_seconds{{service="llm"}} {OF_MODEL})', "silent"),
                ),
                Panel(
                    "Memory",
                    "Of the model with its KV cache; on a CPU, of the process.",
                    "bytes",
                    (
                        Query(f'max(halfreel_torch_memory_allocated_bytes{{service="llm"}} {OF_MODEL})', "allocated"),
                        Query(f'max(halfreel_torch_memory_reserved_bytes{{service="llm"}} {OF_MODEL})', "reserved"),
                    ),
                ),
            ),
        ),
    ),
)
