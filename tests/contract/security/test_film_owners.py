"""A film belongs to the name of the token that made it; to others it is not there."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from gateway_process import Gateway, refused
from sign_in import Keyring, bearer

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel_client.token_file import add_token

NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "FILM_NOT_FOUND")


class Person:
    """Calls the gateway with a token of their own."""

    def __init__(self, gateway: Gateway, token: str) -> None:
        self.stub: Any = gateway_pb2_grpc.GatewayServiceStub(gateway.channel)
        self.signed: dict[str, Any] = {"metadata": bearer(token), "timeout": 20}

    def create(self, request_id: str, idea: str = "a red circle") -> pb.Film:
        request = pb.CreateFilmRequest(request_id=request_id, idea=idea, settings=pb.FilmSettings(scene_count=1))
        return self.stub.CreateFilm(request, **self.signed).film

    def get(self, film_id: str) -> pb.Film:
        return self.stub.GetFilm(pb.GetFilmRequest(film_id=film_id), **self.signed).film

    def ended(self, film_id: str) -> pb.Film:
        deadline = time.monotonic() + 30
        while (film := self.get(film_id)).state < pb.Film.STATE_SUCCEEDED:
            assert time.monotonic() < deadline
            time.sleep(0.03)
        assert film.state == pb.Film.STATE_SUCCEEDED
        return film

    def listed(self, page_size: int = 2) -> set[str]:
        found: set[str] = set()
        token = ""
        while True:
            page = self.stub.ListFilms(pb.ListFilmsRequest(page_size=page_size, page_token=token), **self.signed)
            assert not found & {film.film_id for film in page.films}
            found |= {film.film_id for film in page.films}
            if not (token := page.next_page_token):
                return found

    def ways_to_a_film(self) -> dict[str, Callable[[str], Any]]:
        """Every method that takes a film's id."""
        stub, signed = self.stub, self.signed
        ways = {
            "GetFilm": lambda film_id: stub.GetFilm(pb.GetFilmRequest(film_id=film_id), **signed),
            "WatchFilm": lambda film_id: stub.WatchFilm(pb.WatchFilmRequest(film_id=film_id), **signed),
            "CancelFilm": lambda film_id: stub.CancelFilm(pb.CancelFilmRequest(film_id=film_id), **signed),
            "DeleteFilm": lambda film_id: stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film_id), **signed),
            "ReadVideo": lambda film_id: stub.ReadVideo(pb.ReadVideoRequest(film_id=film_id), **signed),
        }
        of_films = {
            method.name
            for method in pb.DESCRIPTOR.services_by_name["GatewayService"].methods
            if "film_id" in method.input_type.fields_by_name
        }
        assert set(ways) == of_films, "a new method that takes a film's id belongs here"
        return ways


@pytest.fixture(scope="module")
def people(gateway: Gateway, keyring: Keyring) -> dict[str, Person]:
    return {name: Person(gateway, token) for name, token in keyring.tokens.items()}


@pytest.fixture(scope="module")
def film(people: dict[str, Person]) -> pb.Film:
    """Anna's."""
    return people["anna"].ended(people["anna"].create("of-anna").film_id)


def test_to_another_a_film_is_as_one_that_is_not_there(people: dict[str, Person], film: pb.Film) -> None:
    unknown = uuid.uuid4().hex
    for name, way in people["berta"].ways_to_a_film().items():
        told = [refused(lambda way=way, film_id=film_id: way(film_id)) for film_id in (film.film_id, unknown)]
        assert told[0] == told[1], name
        assert (told[0].code, told[0].reason) == NOT_FOUND, name
    assert people["anna"].get(film.film_id) == film


def test_a_film_at_work_is_neither_seen_nor_stopped_by_another(people: dict[str, Person]) -> None:
    film_id = people["anna"].create("at-work").film_id
    for way in people["berta"].ways_to_a_film().values():
        assert refused(lambda way=way: way(film_id)).reason == "FILM_NOT_FOUND"
    assert people["anna"].ended(film_id).state == pb.Film.STATE_SUCCEEDED


def test_its_owner_can_do_everything(people: dict[str, Person]) -> None:
    anna = people["anna"]
    film_id = anna.create("everything").film_id
    events = list(anna.stub.WatchFilm(pb.WatchFilmRequest(film_id=film_id, after_sequence_number=0), **anna.signed))
    assert events[-1].state_changed.state == pb.Film.STATE_SUCCEEDED
    pieces = anna.stub.ReadVideo(pb.ReadVideoRequest(film_id=film_id), **anna.signed)
    data = b"".join(piece.data for piece in pieces)
    assert hashlib.sha256(data).hexdigest() == anna.get(film_id).video.sha256
    assert anna.stub.CancelFilm(pb.CancelFilmRequest(film_id=film_id), **anna.signed).film.film_id == film_id
    anna.stub.DeleteFilm(pb.DeleteFilmRequest(film_id=film_id), **anna.signed)
    assert refused(lambda: anna.get(film_id)).reason == "FILM_NOT_FOUND"


def test_each_lists_their_own_and_an_admin_lists_all(people: dict[str, Person], film: pb.Film) -> None:
    of_berta = {people["berta"].ended(people["berta"].create(f"b{number}").film_id).film_id for number in range(3)}
    of_boss = people["boss"].ended(people["boss"].create("of-boss").film_id).film_id
    of_anna = people["anna"].listed()
    assert film.film_id in of_anna
    assert people["berta"].listed() == of_berta
    assert not of_anna & of_berta
    assert people["boss"].listed() == of_anna | of_berta | {of_boss}
    assert people["boss"].get(film.film_id) == film
    assert of_boss not in of_anna | of_berta


def test_a_request_id_is_one_s_own(people: dict[str, Person]) -> None:
    of_anna = people["anna"].create("same", "one idea")
    of_berta = people["berta"].create("same", "another idea")
    assert of_anna.film_id != of_berta.film_id
    assert people["anna"].create("same", "one idea").film_id == of_anna.film_id
    assert refused(lambda: people["anna"].create("same", "another idea")).reason == "REQUEST_ID_REUSED"
    for name, film_id in (("anna", of_anna.film_id), ("berta", of_berta.film_id)):
        people[name].ended(film_id)


def test_a_second_token_of_the_same_name_sees_the_same_films(
    gateway: Gateway, keyring: Keyring, people: dict[str, Person], film: pb.Film
) -> None:
    second = Person(gateway, add_token(keyring.path, "anna", ["read"], None))
    time.sleep(1.1)
    assert second.get(film.film_id) == film
    assert refused(lambda: second.create("not-allowed")).reason == "SCOPE_MISSING"


def test_without_tokens_all_films_are_everybody_s(
    gateway: Gateway, keyring: Keyring, people: dict[str, Person], film: pb.Film
) -> None:
    """A gateway that is started again without tokens shows what it has; with them again, no less is kept apart."""
    gateway.stop()
    settings = dict(gateway.settings)
    del gateway.settings["tokens_file"]
    gateway.start()
    anybody = gateway.ended(gateway.create("of nobody", scene_count=1).film_id).film_id
    assert gateway.get(film.film_id) == film
    assert gateway.stop() == 0
    gateway.settings = settings
    gateway.start()
    anna, boss = (Person(gateway, keyring.tokens[name]) for name in ("anna", "boss"))
    assert refused(lambda: anna.get(anybody)).reason == "FILM_NOT_FOUND"
    assert anna.get(film.film_id) == film
    assert boss.get(anybody).film_id == anybody
