"""The films, as they are kept: read, listed, made, changed and deleted, each in one transaction.

It does not know how films are made. Events are numbered inside the transaction that changes the film, and told to
`publish` after it is on disk.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import database as db
from halfreel_gateway import films, rows
from halfreel_gateway.change import FilmChange
from halfreel_gateway.failures import FilmEndedError, film_not_found
from halfreel_gateway.pages import Position
from halfreel_runtime.errors import AlreadyExists, FailedPrecondition, QueueFull

# A film takes minutes: who finds the gateway full may ask again in this time.
RETRY_AFTER_S = 5.0

Publish = Callable[[str, Sequence[pb.WatchFilmResponse]], None]


@dataclass(frozen=True)
class StoredFilm:
    """A film as it is, and the number of its last stored event."""

    film: pb.Film
    last_sequence_number: int


@dataclass(frozen=True)
class FilmPosition:
    """How far a film is, for those who only need to know whether something happened."""

    state: pb.Film.State.ValueType
    last_sequence_number: int


class FilmStore:
    """Films, scenes and events in one database.

    Args:
        database: with its tables made.
        publish: told the film's id and its new events after every change; called in the changing thread.
        max_active_count: films that may be in the making at once.
    """

    def __init__(self, database: db.Database, publish: Publish, max_active_count: int) -> None:
        self._database = database
        self._publish = publish
        self._max_active_count = max_active_count

    def create(self, request_id: str, idea: str, settings: pb.FilmSettings, fingerprint: str, *, owner: str) -> pb.Film:
        """Stores a new film, or finds the one that this request made before.

        Args:
            request_id: the client's id, which says nothing of another owner's.
            idea: what the film shows.
            settings: with the seed set.
            fingerprint: of idea and settings as they were sent.
            owner: whose the film is.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED, for another idea or other settings.
            QueueFull: as many films are in the making as may.
        """
        try:
            with self._database.writing() as connection:
                if (known := self._of_request(connection, owner, request_id, fingerprint)) is not None:
                    return known
                self._refuse_too_many(connection)
                change = FilmChange(_new_film(request_id, idea, settings), [], 0)
                change.enter(pb.Film.STATE_QUEUED)
                connection.execute(
                    sa.insert(db.films).values(
                        film_id=change.film.film_id,
                        owner=owner,
                        request_id=request_id,
                        fingerprint=fingerprint,
                        create_time_us=change.film.create_time.ToMicroseconds(),
                        **rows.columns(change),
                    )
                )
                rows.write_events(connection, change)
        except sa.exc.IntegrityError:
            # Another gateway stored the same request between our look and our insert.
            known = self.of_request(owner, request_id, fingerprint)
            if known is None:
                raise
            return known
        self._publish(change.film.film_id, change.events)
        return change.film

    def of_request(self, owner: str, request_id: str, fingerprint: str) -> pb.Film | None:
        """The film that this request of an owner made before, if it did.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED, for another idea or other settings.
        """
        with self._database.reading() as connection:
            return self._of_request(connection, owner, request_id, fingerprint)

    def film(self, film_id: str) -> StoredFilm:
        """One film, all of it.

        Raises:
            NotFound: FILM_NOT_FOUND.
        """
        with self._database.reading() as connection:
            row = connection.execute(sa.select(db.films).where(db.films.c.film_id == film_id)).one_or_none()
            if row is None:
                raise film_not_found()
            return StoredFilm(rows.films_of(connection, [row])[0], row.last_sequence_number)

    def check_owner(self, film_id: str, owner: str) -> None:
        """Whether a film is somebody's; one of another is as if it was not there.

        Raises:
            NotFound: FILM_NOT_FOUND.
        """
        query = sa.select(sa.literal(1)).where(db.films.c.film_id == film_id, db.films.c.owner == owner)
        with self._database.reading() as connection:
            if connection.execute(query).first() is None:
                raise film_not_found()

    def films(self, count: int, after: Position | None, *, owner: str | None) -> list[pb.Film]:
        """Films, newest first.

        Args:
            count: how many at most.
            after: the last film of the page before.
            owner: whose; None for everybody's.
        """
        query = sa.select(db.films).order_by(db.films.c.create_time_us.desc(), db.films.c.film_id.desc()).limit(count)
        if owner is not None:
            query = query.where(db.films.c.owner == owner)
        if after is not None:
            place = sa.tuple_(db.films.c.create_time_us, db.films.c.film_id)
            query = query.where(place < sa.tuple_(sa.literal(after.create_time_us), sa.literal(after.film_id)))
        with self._database.reading() as connection:
            return rows.films_of(connection, connection.execute(query).all())

    def events(self, film_id: str, after: int) -> list[pb.WatchFilmResponse]:
        """The film's stored events after a number, in order."""
        query = (
            sa.select(db.events.c.event)
            .where(db.events.c.film_id == film_id, db.events.c.sequence_number > after)
            .order_by(db.events.c.sequence_number)
        )
        with self._database.reading() as connection:
            return [pb.WatchFilmResponse.FromString(event) for event in connection.execute(query).scalars()]

    def positions(self, film_ids: Sequence[str]) -> dict[str, FilmPosition]:
        """How far these films are; a film that is not there is left out."""
        columns = (db.films.c.film_id, db.films.c.state, db.films.c.last_sequence_number)
        query = sa.select(*columns).where(db.films.c.film_id.in_(film_ids))
        with self._database.reading() as connection:
            return {row.film_id: FilmPosition(*row[1:]) for row in connection.execute(query)}

    def active_film_ids(self) -> list[str]:
        """Films that have not ended, oldest first."""
        # Sorted here: told to sort, SQLite walks the index of all films instead of that of the few active ones.
        query = sa.select(db.films.c.create_time_us, db.films.c.film_id).where(_active())
        with self._database.reading() as connection:
            return [film_id for _, film_id in sorted(map(tuple, connection.execute(query)))]

    def queued_film_ids(self) -> list[str]:
        """Films that nobody has begun, or whose beginning is not stored yet."""
        query = sa.select(db.films.c.film_id).where(db.films.c.state == pb.Film.STATE_QUEUED)
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def counts(self) -> dict[int, int]:
        """How many films are in each state."""
        query = sa.select(db.films.c.state, sa.func.count()).group_by(db.films.c.state)
        with self._database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def scene_counts(self) -> dict[str, int]:
        """How many scenes of the films in the making wait, are at work ("rendering") and are done ("rendered")."""
        begun, done = db.scenes.c.start_time_us > 0, db.scenes.c.end_time_us > 0
        state = sa.case((done, "rendered"), (begun, "rendering"), else_="waiting").label("scene_state")
        query = (
            sa.select(state, sa.func.count())
            .select_from(db.scenes.join(db.films, db.films.c.film_id == db.scenes.c.film_id))
            .where(_active())
            .group_by(state)
        )
        with self._database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    @contextmanager
    def change(self, film_id: str) -> Iterator[FilmChange]:
        """A transaction on one film that has not ended; what the block leaves is stored, nothing if it raises.

        Raises:
            FilmEndedError: the film has ended, or is deleted.
        """
        with self._database.writing() as connection:
            query = sa.select(db.films).where(db.films.c.film_id == film_id).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None or films.has_ended(row.state):
                raise FilmEndedError
            film, records = rows.film_message(row), rows.scene_records(connection, [film_id])[film_id]
            change = FilmChange(film, records, row.last_sequence_number)
            had_count = len(records)
            yield change
            connection.execute(sa.update(db.films).where(db.films.c.film_id == film_id).values(**rows.columns(change)))
            rows.write_scenes(connection, film_id, change.scenes, had_count)
            rows.write_events(connection, change)
        self._publish(film_id, change.events)

    def cancel(self, film_id: str) -> pb.Film:
        """Ends a film that has not ended, and tells how it is then.

        Raises:
            NotFound: FILM_NOT_FOUND.
        """
        try:
            with self.change(film_id) as change:
                change.cancel()
        except FilmEndedError:
            pass
        return self.film(film_id).film

    def delete(self, film_id: str) -> list[str]:
        """Forgets a film that has ended, with its scenes and events.

        Returns:
            SHA-256 of its clips that no other film has.

        Raises:
            NotFound: FILM_NOT_FOUND.
            FailedPrecondition: FILM_NOT_ENDED.
        """
        with self._database.writing() as connection:
            query = sa.select(db.films.c.state).where(db.films.c.film_id == film_id).with_for_update()
            state = connection.execute(query).scalar_one_or_none()
            if state is None:
                raise film_not_found()
            if not films.has_ended(state):
                message = "The film is still in the making; cancel it before it is deleted."
                raise FailedPrecondition(message, reason="FILM_NOT_ENDED")
            clip = db.scenes.c.clip_sha256
            query_clips = sa.select(clip).distinct().where(db.scenes.c.film_id == film_id, clip != "")
            clips = list(connection.execute(query_clips).scalars())
            for table in (db.events, db.scenes, db.films):
                connection.execute(sa.delete(table).where(table.c.film_id == film_id))
            return [sha256 for sha256 in clips if not _has_clip(connection, sha256)]

    def uses_clip(self, sha256: str) -> bool:
        """Whether any film has this clip."""
        with self._database.reading() as connection:
            return _has_clip(connection, sha256)

    def uses_film(self, film_id: str) -> bool:
        """Whether the film is there, finished or not."""
        return film_id in self.positions([film_id])

    def set_waiting(self, film_id: str, reason: str) -> None:
        """Keeps why the film waits; an empty reason means that it goes on. Not an event."""
        change = sa.update(db.films).where(db.films.c.film_id == film_id, _active()).values(waiting_reason=reason)
        with self._database.writing() as connection:
            connection.execute(change)

    def raise_scene_ratio(self, film_id: str, index: int, done_ratio: float) -> None:
        """Keeps how much of a scene is rendered, if that is more than before and the film goes on. Not an event."""
        scene = db.scenes.c
        going_on = sa.select(db.films.c.film_id).where(db.films.c.film_id == film_id, _active())
        change = sa.update(db.scenes).where(
            scene.film_id.in_(going_on), scene.scene_index == index, scene.done_ratio < done_ratio
        )
        with self._database.writing() as connection:
            connection.execute(change.values(done_ratio=done_ratio))

    def _of_request(self, connection: sa.Connection, owner: str, request_id: str, fingerprint: str) -> pb.Film | None:
        same = (db.films.c.owner == owner, db.films.c.request_id == request_id)
        row = connection.execute(sa.select(db.films).where(*same)).one_or_none()
        if row is None:
            return None
        if row.fingerprint != fingerprint:
            raise AlreadyExists(
                "request_id was used before for another idea or other settings; choose a new one.",
                reason="REQUEST_ID_REUSED",
            )
        return rows.films_of(connection, [row])[0]

    def _refuse_too_many(self, connection: sa.Connection) -> None:
        query = sa.select(sa.func.count()).select_from(db.films).where(_active())
        if (count := connection.execute(query).scalar_one()) >= self._max_active_count:
            raise QueueFull(
                f"{count} films are in the making, which is as many as may be; try again when one has ended.",
                metadata={"active_film_count": str(count), "max_active_film_count": str(self._max_active_count)},
                retry_after_s=RETRY_AFTER_S,
            )


def _active() -> sa.ColumnElement[bool]:
    return db.films.c.state < films.FIRST_END


def _has_clip(connection: sa.Connection, sha256: str) -> bool:
    query = sa.select(sa.literal(1)).where(db.scenes.c.clip_sha256 == sha256).limit(1)
    return connection.execute(query).first() is not None


def _new_film(request_id: str, idea: str, settings: pb.FilmSettings) -> pb.Film:
    now = films.timestamp(films.now_us())
    film_id = secrets.token_hex(16)
    return pb.Film(
        film_id=film_id, request_id=request_id, idea=idea, settings=settings, create_time=now, update_time=now
    )
