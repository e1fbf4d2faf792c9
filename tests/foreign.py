"""An application's own tables, whose names are also ours."""

from __future__ import annotations

import psycopg


def make_foreign_tables(database: psycopg.Connection) -> None:
    """What an application that was there first may have in schema public."""
    database.execute("CREATE TABLE public.users (id serial PRIMARY KEY, nickname text NOT NULL)")
    database.execute("INSERT INTO public.users (nickname) VALUES ('somebody of the application')")
    database.execute("CREATE TABLE public.alembic_version (version_num varchar(32) PRIMARY KEY)")
    database.execute("INSERT INTO public.alembic_version VALUES ('abc123')")
    database.execute("CREATE TABLE public.jobs (id int PRIMARY KEY)")
