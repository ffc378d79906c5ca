"""The dashboard of memory: devices, servers, phases and plans.

Names are those of docs/metrics.md. It does not know Grafana's format.
"""

from __future__ import annotations

from board import GPU, OF_MODEL, SERVICE, Board, Row, model_per_second, one, per_second
from panel import Panel, Query

VRAM = Board(
    "halfreel-vram",
    "Halfreel: VRAM",
    "What every byte of video memory is used for. Without a GPU the device is the host, and a process's bytes are its "
    "resident ones.",
    (
        Row(
            "Devices",
            (
                Panel(
                    "Memory in use",
                    "By all processes on the device, against what it has.",
                    "bytes",
                    (
                        Query(f"max by (gpu_uuid) (halfreel_gpu_memory_used_bytes{{{GPU}}})", "{{gpu_uuid}} used"),
                        Query(f"max by (gpu_uuid) (halfreel_gpu_memory_total_bytes{{{GPU}}})", "{{gpu_uuid}} total"),
                    ),
                ),
                Panel(
                    "Memory free",
                    "What the driver could still give, to whichever process asks.",
                    "bytes",
                    one(f"min by (gpu_uuid) (halfreel_gpu_memory_free_bytes{{{GPU}}})", "{{gpu_uuid}}"),
                ),
                Panel(
                    "Part in use",
                    "Against the threshold at which memory counts as short (0 for none).",
                    "percentunit",
                    (
                        Query(
                            f"max by (gpu_uuid) (halfreel_gpu_memory_used_bytes{{{GPU}}} "
                            f"/ halfreel_gpu_memory_total_bytes{{{GPU}}})",
                            "{{gpu_uuid}}",
                        ),
                        Query(
                            f"max by (service) (halfreel_memory_warn_ratio{{{GPU}}} {OF_MODEL})",
                            "{{service}} warns at",
                        ),
                    ),
                ),
                Panel(
                    "GPU utilisation",
                    "Part of the time in which some kernel ran. GPUs alone.",
                    "percentunit",
                    one(f"max by (gpu_uuid) (halfreel_gpu_utilization_ratio{{{GPU}}})", "{{gpu_uuid}}"),
                    width=6,
                ),
                Panel(
                    "Power",
                    "Drawn by the whole board. GPUs alone.",
                    "watt",
                    one(f"max by (gpu_uuid) (halfreel_gpu_power_watts{{{GPU}}})", "{{gpu_uuid}}"),
                    width=6,
                ),
                Panel(
                    "Temperature",
                    "Of the chip; near 90 °C it slows itself down. GPUs alone.",
                    "celsius",
                    one(f"max by (gpu_uuid) (halfreel_gpu_temperature_celsius{{{GPU}}})", "{{gpu_uuid}}"),
                    width=6,
                ),
                Panel(
                    "Energy",
                    "Used within the last hour. GPUs alone.",
                    "joule",
                    one(f"max by (gpu_uuid) (increase(halfreel_gpu_energy_joules_total{{{GPU}}}[1h]))", "{{gpu_uuid}}"),
                    width=6,
                ),
            ),
        ),
        Row(
            "Servers",
            (
                Panel(
                    "Allocated and reserved",
                    "Bytes in live tensors, and bytes the allocator holds; the gap can be had back with ClearMemory.",
                    "bytes",
                    (
                        Query(
                            f"halfreel_torch_memory_allocated_bytes{{{GPU}}} {OF_MODEL}",
                            "{{service}} {{instance}} allocated",
                        ),
                        Query(
                            f"halfreel_torch_memory_reserved_bytes{{{GPU}}} {OF_MODEL}",
                            "{{service}} {{instance}} reserved",
                        ),
                    ),
                ),
                Panel(
                    "Peaks",
                    "Largest reserved bytes since the process began, of the running or last request, and of the last "
                    "minute.",
                    "bytes",
                    one(
                        f"max by (service, window) (halfreel_torch_memory_reserved_peak_bytes{{{GPU}}} {OF_MODEL})",
                        "{{service}} {{window}}",
                    ),
                ),
                Panel(
                    "Budget and headroom",
                    "What each server may take at most (0 for no budget), and what of it, or of the device, is left.",
                    "bytes",
                    (
                        Query(f"halfreel_memory_budget_bytes{{{GPU}}} {OF_MODEL}", "{{service}} budget"),
                        Query(f"halfreel_memory_headroom_bytes{{{GPU}}} {OF_MODEL}", "{{service}} headroom"),
                        Query(f"halfreel_memory_min_free_bytes{{{GPU}}} {OF_MODEL}", "{{service}} to stay free"),
                    ),
                ),
                Panel(
                    "Context and others",
                    "What the driver keeps for each server outside its allocator, and what other processes hold.",
                    "bytes",
                    (
                        Query(f"halfreel_memory_context_bytes{{{GPU}}} {OF_MODEL}", "{{service}} context"),
                        Query(
                            f"max by (gpu_uuid) (halfreel_memory_other_processes_bytes{{{GPU}}})", "{{gpu_uuid}} others"
                        ),
                    ),
                ),
                Panel(
                    "Memory is short",
                    "1 while a server says so: over its warning threshold, or less free than should stay free.",
                    "short",
                    one(f"max by (service, gpu_uuid) (halfreel_memory_short{{{GPU}}})", "{{service}} {{gpu_uuid}}"),
                ),
                Panel(
                    "Host memory",
                    "Of the machines: sleeping weights go there.",
                    "bytes",
                    (
                        Query(f"min(halfreel_host_memory_available_bytes{{{SERVICE}}})", "available"),
                        Query(f"max(halfreel_host_memory_total_bytes{{{SERVICE}}})", "total"),
                    ),
                ),
            ),
        ),
        Row(
            "Phases and plans",
            (
                Panel(
                    "Peak of each phase",
                    "Largest reserved bytes of the last job that had the phase: the highest bar decides what fits.",
                    "bytes",
                    one(
                        f"max by (service, phase) (halfreel_phase_memory_peak_bytes{{{GPU}}} {OF_MODEL})",
                        "{{service}} {{phase}}",
                    ),
                    "bars",
                ),
                Panel(
                    "Measured by predicted",
                    "How the peaks compare with what plans predicted, as a share of the observations: all of them "
                    "between 0.95 and 1.05 is a plan to rely on. Above 1 was worse than planned.",
                    "percentunit",
                    one(
                        "sum by (service, le) (increase(halfreel_memory_prediction_ratio_bucket"
                        f"{{{SERVICE}}}[1h]) {OF_MODEL}) / ignoring (le) group_left clamp_min(sum by (service) "
                        f"(increase(halfreel_memory_prediction_ratio_count{{{SERVICE}}}[1h]) {OF_MODEL}), 1)",
                        "{{service}} up to {{le}}",
                    ),
                    "bars",
                ),
                Panel(
                    "Verdicts on requests",
                    "What plans said before requests ran: fits, fits once another server sleeps, fits in a cheaper "
                    "form, refused.",
                    "reqps",
                    one(model_per_second("halfreel_admissions_total", "service, verdict"), "{{service}} {{verdict}}"),
                ),
                Panel(
                    "Out of memory",
                    'Within the last hour, by phase; "true" where the work went on.',
                    "short",
                    one(
                        f"sum by (service, phase, recovered) (increase(halfreel_out_of_memory_total{{{SERVICE}}}[1h]))",
                        "{{service}} {{phase}} {{recovered}}",
                    ),
                ),
                Panel(
                    "Rungs and NaN",
                    "Steps taken after memory ran out, and numbers that were not finite, within the last hour.",
                    "short",
                    (
                        Query(
                            f"sum by (service, rung) (increase(halfreel_rungs_total{{{SERVICE}}}[1h]))",
                            "{{service}} {{rung}}",
                        ),
                        Query(
                            f"sum by (service) (increase(halfreel_nan_detected_total{{{SERVICE}}}[1h]))",
                            "{{service}} NaN",
                        ),
                    ),
                ),
                Panel(
                    "Sleep and wake",
                    "How long it took to move a model's weights, in the mean over an hour.",
                    "s",
                    one(
                        f"sum by (service, direction) (increase(halfreel_sleep_duration_seconds_sum{{{SERVICE}}}[1h])) "
                        "/ clamp_min(sum by (service, direction) "
                        f"(increase(halfreel_sleep_duration_seconds_count{{{SERVICE}}}[1h])), 1)",
                        "{{service}} {{direction}}",
                    ),
                ),
                Panel(
                    "Waiting for the GPU",
                    "Part of the time that work waited for another server to leave the GPU; more than a tenth asks for "
                    "a second GPU.",
                    "percentunit",
                    one(per_second("halfreel_turn_wait_seconds_sum", "service"), "{{service}}"),
                ),
                Panel(
                    "Levers",
                    "How each model server was set up, or found itself.",
                    "short",
                    one(f"sum by (service, instance, lever, value) (halfreel_lever_info{{{SERVICE}}})"),
                    "table",
                    16,
                ),
            ),
        ),
    ),
)
