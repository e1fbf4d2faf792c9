-- What has been counted: a rollup of the trail, so it is not under audit itself.
CREATE TABLE counters (
  name text NOT NULL,
  label text NOT NULL,
  word text NOT NULL,
  upto double precision NOT NULL,
  count bigint NOT NULL,
  total double precision NOT NULL DEFAULT 0,
  CONSTRAINT pk_counters PRIMARY KEY (name, label, word, upto)
) WITH (fillfactor = 70);

CREATE TABLE counter_position (
  id boolean NOT NULL DEFAULT true,
  xid xid8 NOT NULL,
  entry_id bigint NOT NULL,
  CONSTRAINT pk_counter_position PRIMARY KEY (id),
  CONSTRAINT ck_counter_position_one_row CHECK (id)
);

-- From here on: what an old trail holds is not counted.
INSERT INTO counter_position (xid, entry_id) VALUES (pg_snapshot_xmax(pg_current_snapshot()), 0);
