"""The dashboard of the video model and of films.

Names are those of docs/metrics.md. It does not know Grafana's format.
"""

from __future__ import annotations

from board import OF_MODEL, RATE, Board, Row, model_per_second, of, one, quantiles
from panel import Panel, Query

FILMS = Board(
    "halfreel-films",
    "Halfreel: video and films",
    "How fast scenes are rendered, and what becomes of films.",
    (
        Row(
            "Films",
            (
                Panel(
                    "Films by state",
                    "All films that are kept; gateways of one database tell the same.",
                    "short",
                    one("max by (state) (halfreel_films)", "{{state}}"),
                    "stack",
                ),
                Panel(
                    "Scenes of the films in the making",
                    "Those that wait are the depth of the queue.",
                    "short",
                    one("max by (state) (halfreel_scenes)", "{{state}}"),
                    "stack",
                ),
                Panel(
                    "Films that ended",
                    "Within the last hour.",
                    "short",
                    one("sum by (outcome) (increase(halfreel_films_ended_total[1h]))", "{{outcome}}"),
                ),
                Panel(
                    "Failures by reason",
                    "Why films failed, within the last hour.",
                    "short",
                    one("sum by (reason) (increase(halfreel_films_failed_total[1h]))", "{{reason}}"),
                ),
                Panel(
                    "Duration of films",
                    "From acceptance to the end, of films that were finished.",
                    "s",
                    tuple(
                        Query(
                            f"histogram_quantile({quantile}, sum by (le) "
                            f'(rate(halfreel_film_duration_seconds_bucket{{outcome="succeeded"}}{RATE})))',
                            f"p{quantile * 100:.0f}",
                        )
                        for quantile in (0.5, 0.95)
                    ),
                ),
                Panel(
                    "Attempts at scenes",
                    "Scenes that a video server was at work on, by how that ended, within the last hour.",
                    "short",
                    one("sum by (outcome) (increase(halfreel_scene_attempts_total[1h]))", "{{outcome}}"),
                ),
            ),
        ),
        Row(
            "Rendering",
            (
                Panel(
                    "Stages of a clip",
                    "Keyframe, encode, denoise, decode, mux: where the time goes.",
                    "s",
                    of("video", quantiles("halfreel_stage_duration_seconds", "stage")),
                ),
                Panel(
                    "Denoising step",
                    "One step of the video model; its length is what a cancel waits for at most.",
                    "s",
                    of("video", quantiles("halfreel_denoise_step_duration_seconds")),
                ),
                Panel(
                    "Realtime factor",
                    "Seconds of work for a second of film.",
                    "short",
                    of("video", quantiles("halfreel_realtime_factor_ratio")),
                ),
                Panel(
                    "Frames",
                    "Frames of finished clips.",
                    "cps",
                    of("video", one(model_per_second("halfreel_frames_total", "service"), "frames")),
                ),
                Panel(
                    "Film",
                    "Seconds of finished clips in a second.",
                    "short",
                    of("video", one(model_per_second("halfreel_clip_seconds_total", "service"), "seconds a second")),
                ),
                Panel(
                    "Cancel",
                    "From a clip that nobody waits for any more to the end of its work: a denoising step at most.",
                    "s",
                    of("video", quantiles("halfreel_cancel_latency_seconds")),
                ),
                Panel(
                    "Since the last progress",
                    "For how long a running clip has shown no progress; the server ends itself when that is a stall.",
                    "s",
                    one(
                        f'max by (instance) (halfreel_progress_age_seconds{{service="video"}} {OF_MODEL})',
                        "{{instance}}",
                    ),
                ),
                Panel(
                    "Requests at the video servers",
                    "Clips that are rendered now, and requests that wait.",
                    "short",
                    (
                        Query(f'sum(halfreel_requests_running{{service="video"}} {OF_MODEL})', "running"),
                        Query(f'sum(halfreel_requests_waiting{{service="video"}} {OF_MODEL})', "waiting"),
                    ),
                ),
                Panel(
                    "Disk of clips and films",
                    "What is free, against what must be for a film to be accepted.",
                    "bytes",
                    (
                        Query("min(halfreel_artifact_disk_free_bytes)", "free"),
                        Query("max(halfreel_artifact_disk_total_bytes)", "total"),
                        Query("max(halfreel_artifact_disk_min_free_bytes)", "needed"),
                    ),
                ),
            ),
        ),
    ),
)
