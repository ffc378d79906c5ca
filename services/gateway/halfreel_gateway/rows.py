"""Rows of the database as messages of the contract, and back.

It does not know transactions: the store opens and ends them.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import database as db
from halfreel_gateway import films
from halfreel_gateway.change import FilmChange, SceneRecord

FilmRow = sa.Row[tuple[object, ...]]


def film_message(row: FilmRow) -> pb.Film:
    """A film without its scenes and progress."""
    film = pb.Film.FromString(row.film)
    film.waiting_reason = row.waiting_reason
    return film


def films_of(connection: sa.Connection, rows: Sequence[FilmRow]) -> list[pb.Film]:
    """The films of some rows, with their scenes and progress."""
    told = []
    records_of = scene_records(connection, [row.film_id for row in rows])
    for row in rows:
        film, records = film_message(row), records_of[row.film_id]
        film.scenes.extend(record.scene for record in records)
        film.progress_ratio = films.progress_ratio(film.state, (record.done_ratio for record in records))
        told.append(film)
    return told


def scene_records(connection: sa.Connection, film_ids: Sequence[str]) -> dict[str, list[SceneRecord]]:
    """Each film's scenes, in order."""
    records: dict[str, list[SceneRecord]] = {film_id: [] for film_id in film_ids}
    query = sa.select(db.scenes).where(db.scenes.c.film_id.in_(film_ids)).order_by(db.scenes.c.scene_index)
    for row in connection.execute(query):
        records[row.film_id].append(
            SceneRecord(
                pb.Scene.FromString(row.scene),
                done_ratio=row.done_ratio,
                start_time_us=row.start_time_us,
                end_time_us=row.end_time_us,
            )
        )
    return records


def columns(change: FilmChange) -> dict[str, object]:
    """What a film's row holds of it; the scenes have rows of their own."""
    return {
        "state": change.film.state,
        "waiting_reason": change.film.waiting_reason,
        "last_sequence_number": change.last_sequence_number,
        "film": change.film.SerializeToString(),
    }


def write_scenes(connection: sa.Connection, film_id: str, records: Sequence[SceneRecord], had_count: int) -> None:
    """Stores the scenes, of which the first `had_count` are stored already."""
    kept = db.scenes.c
    for index, record in enumerate(records):
        values = {
            "clip_sha256": record.scene.clip.sha256,
            "start_time_us": record.start_time_us,
            "end_time_us": record.end_time_us,
            "scene": record.scene.SerializeToString(),
        }
        if index < had_count:
            # It may have been raised since we read it, and only grows.
            raised = sa.case((kept.done_ratio > record.done_ratio, kept.done_ratio), else_=record.done_ratio)
            same = (kept.film_id == film_id, kept.scene_index == index)
            connection.execute(sa.update(db.scenes).where(*same).values(done_ratio=raised, **values))
        else:
            key = {"film_id": film_id, "scene_index": index, "done_ratio": record.done_ratio}
            connection.execute(sa.insert(db.scenes).values(**key, **values))


def write_events(connection: sa.Connection, change: FilmChange) -> None:
    """Stores what happened in a change."""
    rows = [
        {
            "film_id": change.film.film_id,
            "sequence_number": event.sequence_number,
            "event": event.SerializeToString(),
        }
        for event in change.events
    ]
    if rows:
        connection.execute(sa.insert(db.events), rows)
