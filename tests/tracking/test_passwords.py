"""No address that is shown or recorded holds a password."""

import pytest

from mixerbench.tracking.passwords import without_password

PLAIN = [
    "sqlite:////data/mlflow.db",
    "http://localhost:5000",
    "http://[::1]:5000/api/2.0/mlflow/runs?max_results=1&order=time",
    "https://github.com/someone/mixers@v1.2",
    "postgresql://db.lab.example/mlflow",
    "mixer=attention backbone.pool=token run.seed=1 (write to me@lab.example)",
    "",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert without_password(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("http://hunter2@host", "http://***@host"),
        ("http://:hunter2@host", "http://***@host"),
        ("http://me:hunter%402@host", "http://***@host"),
        ("postgresql://me:hun@ter2@host/db", "postgresql://***@host/db"),
        ("postgresql+psycopg2://me:hun/ter?2#@host/db", "postgresql+psycopg2://***@host/db"),
        ("mysql://me@lab:hunter2@host:3306/db", "mysql://***@host:3306/db"),
        ("mssql+pyodbc://me:hun'ter2@host/db?driver=x", "mssql+pyodbc://***@host/db?driver=x"),
        ("http://me:hunter2@[::1]:5000", "http://***@[::1]:5000"),
        ("http\\://me\\:hunter2@host", "http\\://***@host"),
        ('{"uri":"http:\\/\\/me:hunter2@host"}', '{"uri":"http:\\/\\/***@host"}'),
        (
            "postgresql://host/db?user=me&password=hunter2&sslmode=require",
            "postgresql://host/db?user=me&password=***&sslmode=require",
        ),
        ("http://host/?Access_Token=hunter2#top", "http://host/?Access_Token=***#top"),
        ("http://host/?a=1&api_key=hunter2 is down", "http://host/?a=1&api_key=*** is down"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dhunter2", "mssql+pyodbc:///?odbc_connect=***"),
        (
            "http://a:5000,http://me:hunter2@b:5000 'mysql://you:hunter2@c'",
            "http://a:5000,http://***@b:5000 'mysql://***@c'",
        ),
        ("two lines\nhttp://me:hunter2@host\nhere", "two lines\nhttp://***@host\nhere"),
    ],
)
def test_users_and_passwords_become_stars_and_the_rest_stays(text: str, masked: str) -> None:
    assert without_password(text) == masked
    assert without_password(masked) == masked
