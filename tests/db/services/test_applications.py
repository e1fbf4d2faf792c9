"""What is deployed and where to: checked when it is saved, changed by one at a time, kept while it is needed."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from db.errors import AlreadyExists, Conflict, InvalidInput, NotFound, PermissionDenied
from db.repositories import ApplicationRepository, InfrastructureRepository
from db.services import applications, infrastructure
from tests.db.services.conftest import one_line, rows


def nested(path: str, value: object) -> dict[str, object]:
    """`configuration.shell` and a value, as keywords."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


WRONG_APPLICATIONS = [
    ("name", "", "name"),
    ("name", "../etc", "name"),
    ("name", "x" * 64, "name"),
    ("name", "shop\n", "name"),
    ("command", [], "command"),
    ("command", "rm -rf /", "command"),
    ("command", ["a\0b"], "command.0"),
    ("command", ["\ud800"], "command.0"),
    ("command", ["x" * 8193], "command.0"),
    ("command", ["x"] * 257, "command"),
    ("description", "two\nlines", "description"),
    ("working_directory", "relative", "working_directory"),
    ("health_check_url", "ftp://host", "health_check_url"),
    ("health_check_url", "http://", "health_check_url"),
    ("health_check_url", "http://user:hunter2@host", "health_check_url"),
    ("health_check_url", "http://host:99999", "health_check_url"),
    ("health_check_url", "http://host/a b?t=hunter2", "health_check_url"),
    ("health_check_url", "http://host/\N{LATIN SMALL LETTER U WITH DIAERESIS}", "health_check_url"),
    ("unknown", 1, "unknown"),
    ("configuration.unknown", 1, "configuration.unknown"),
    ("configuration.environment", {"OPS_VERSION": "x"}, "configuration.environment.OPS_VERSION"),
    ("configuration.environment", {"A=B": "x"}, "configuration.environment.A=B"),
    ("configuration.environment", {"A": "hunter2\0"}, "configuration.environment.A"),
    ("configuration.secrets", {"A": "no-slash"}, "configuration.secrets.A"),
    ("configuration.health.attempts", 0, "configuration.health.attempts"),
    ("configuration.health.timeout_seconds", 61, "configuration.health.timeout_seconds"),
    ("configuration.timeout_seconds", 0, "configuration.timeout_seconds"),
    ("configuration.promote", [], "configuration.promote"),
    ("configuration.shell", True, "with shell, command is one word"),
]


def test_what_cannot_be_an_application_is_one_line_that_names_the_field_and_hides_the_value(session):
    before = rows(session)
    for path, value, said in WRONG_APPLICATIONS:
        with pytest.raises(InvalidInput) as error:
            applications.register(session, **{"name": "shop", "command": ["a", "b"]} | nested(path, value))
        message = one_line(error)
        assert message.startswith(said), message
        assert "hunter2" not in message
    assert rows(session) == before


def test_an_application_is_stored_as_it_was_said(session):
    configuration = {"secrets": {"TOKEN": "aws/token"}, "health": {"attempts": 3}, "promote": ["switch"]}
    made = applications.register(
        session, name="shop", command=["deploy", "it"], health_check_url="http://host/%20?a=b",
        working_directory="/srv", configuration=configuration,
    )  # fmt: skip
    session.commit()
    session.expire_all()
    # Only what was said: defaults may grow better in a later release.
    assert made.configuration == configuration
    assert (made.command, made.health_check_url) == (["deploy", "it"], "http://host/%20?a=b")


def test_a_taken_name_is_one_line_whatever_its_case_and_the_session_goes_on(session, shop, here, anna):
    with pytest.raises(AlreadyExists) as error:
        applications.register(session, name="SHOP", command=["x"])
    assert one_line(error) == "an application with this name exists already"
    with pytest.raises(AlreadyExists) as error:
        infrastructure.register(session, owner_id=anna.id, name="Here")
    assert one_line(error) == "an infrastructure with this name exists already"
    other = applications.register(session, name="other", command=["x"])
    with pytest.raises(AlreadyExists):
        applications.edit(session, application=other, name="Shop", description="both or neither")
    applications.edit(session, application=other, command=["y"])
    session.commit()
    session.expire_all()
    assert (other.name, other.description, other.command) == ("other", None, ["y"])


def test_an_edit_changes_some_fields_and_checks_the_whole(session, shop):
    applications.edit(session, application=shop, configuration={"timeout_seconds": 5})
    with pytest.raises(InvalidInput, match="with shell"):
        applications.edit(session, application=shop, configuration={"shell": True})
    session.commit()
    session.expire_all()
    assert (shop.command, shop.configuration) == (["deploy", "it"], {"timeout_seconds": 5})


def test_the_slower_of_two_editors_of_one_application_is_told_to_look_again(session, shop, here):
    session.commit()
    with Session(session.get_bind(), expire_on_commit=False) as other:
        theirs = ApplicationRepository(other).require_by_name("shop")
        place = InfrastructureRepository(other).require_by_name("here")
        applications.edit(session, application=shop, description="first")
        infrastructure.edit(session, infrastructure=here, region="first")
        session.commit()
        with pytest.raises(Conflict) as error:
            applications.edit(other, application=theirs, description="second")
        assert one_line(error) == "this application has been changed by somebody else; look again"
        with pytest.raises(Conflict, match="this infrastructure has been changed"):
            infrastructure.edit(other, infrastructure=place, region="second")
        assert (theirs.description, place.region) == ("first", "first")
        applications.edit(other, application=theirs, description="third")
        other.commit()
    session.expire_all()
    assert (shop.description, here.region) == ("third", "first")


def test_removing_what_somebody_has_just_changed_or_removed_is_refused(session, shop):
    session.commit()
    with Session(session.get_bind(), expire_on_commit=False) as other:
        theirs = ApplicationRepository(other).require_by_name("shop")
        applications.edit(session, application=shop, description="changed")
        session.commit()
        with pytest.raises(Conflict, match="changed by somebody else"):
            applications.remove(other, application=theirs)
        applications.remove(session, application=shop)
        session.commit()
        with pytest.raises(Conflict, match="changed by somebody else"):
            applications.edit(other, application=theirs, description="x")


def test_what_was_deployed_cannot_be_removed(session, asked, shop, here):
    for remove in (
        lambda: applications.remove(session, application=shop),
        lambda: infrastructure.remove(session, infrastructure=here),
    ):
        with pytest.raises(Conflict) as error:
            remove()
        assert one_line(error).endswith("is still used by deployments")
    assert rows(session)["applications"] == 1


def test_who_may_do_what_with_applications_and_places(session, person, shop, here, anna):
    viewer, operator, admin = person("vic", "viewer"), person("ben"), person("root", "admin")
    for deed in (
        lambda actor: applications.register(session, name="x", command=["x"], actor=actor),
        lambda actor: applications.edit(session, application=shop, description="x", actor=actor),
        lambda actor: infrastructure.register(session, name="x", owner_id=actor.id, actor=actor),
        lambda actor: infrastructure.edit(session, infrastructure=here, region="x", actor=actor),
    ):
        with pytest.raises(PermissionDenied, match="needs the role operator; vic is viewer"):
            deed(viewer)
        deed(operator)
    for deed in (
        lambda actor: infrastructure.register(session, name="z", owner_id=anna.id, actor=actor),
        lambda actor: applications.remove(session, application=shop, actor=actor),
        lambda actor: infrastructure.remove(session, infrastructure=here, actor=actor),
    ):
        with pytest.raises(PermissionDenied, match="needs the role admin; ben is operator"):
            deed(operator)
        deed(admin)


def test_what_cannot_be_a_place_is_one_line_that_names_the_field(session, anna):
    before = rows(session)
    for path, value, said in (
        ("name", "a b", "name"),
        ("environment", "prod", "environment"),
        ("driver", "magic", "driver: unknown driver; known are: command"),
        ("provider", "", "provider"),
        ("region", "two\nlines", "region"),
        ("settings.unknown", 1, "settings.unknown"),
        ("settings.environment", {"OPS_X": "hunter2"}, "settings.environment.OPS_X"),
    ):
        with pytest.raises(InvalidInput) as error:
            infrastructure.register(session, owner_id=anna.id, **{"name": "place"} | nested(path, value))
        message = one_line(error)
        assert said in message, message
        assert "hunter2" not in message
    with pytest.raises(NotFound, match="there is no user 42"):
        infrastructure.register(session, owner_id=42, name="place")
    assert rows(session) == before


def test_a_place_is_edited_as_a_whole(session, here):
    infrastructure.edit(session, infrastructure=here, environment="production", settings={"environment": {"A": "b"}})
    assert here.environment.value == "production"
    with pytest.raises(InvalidInput):
        infrastructure.edit(session, infrastructure=here, environment="moon", region="x")
    session.commit()
    session.expire_all()
    assert (here.environment, here.settings, here.region) == ("production", {"environment": {"A": "b"}}, None)


def test_an_unknown_name_is_one_line_that_says_where_the_names_are(session):
    with pytest.raises(NotFound) as error:
        ApplicationRepository(session).require_by_name("nope")
    assert (one_line(error), error.value.hint) == ("there is no application 'nope'", "ops app list")
    with pytest.raises(NotFound) as error:
        InfrastructureRepository(session).require_by_name("nope")
    assert (one_line(error), error.value.hint) == ("there is no infrastructure 'nope'", "ops infra list")
