-- Checks: what is looked at, where each stands, and what was seen.

-- What is looked at, how often, and what is made of what is seen.
CREATE TABLE monitoring_checks (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  name TEXT NOT NULL,
  kind TEXT NOT NULL,
  config JSONB DEFAULT '{}' NOT NULL,
  interval_seconds BIGINT DEFAULT '60' NOT NULL,
  timeout_seconds FLOAT DEFAULT '5' NOT NULL,
  failure_threshold BIGINT DEFAULT '3' NOT NULL,
  success_threshold BIGINT DEFAULT '2' NOT NULL,
  retry_seconds BIGINT,
  severity TEXT DEFAULT 'high' NOT NULL,
  labels JSONB DEFAULT '{}' NOT NULL,
  public BOOLEAN DEFAULT 'false' NOT NULL,
  paused_at TIMESTAMP WITH TIME ZONE,
  application_id BIGINT,
  infrastructure_id BIGINT,
  owner_id BIGINT NOT NULL,
  ping_token UUID,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_monitoring_checks PRIMARY KEY (id),
  CONSTRAINT ck_monitoring_checks_ping_token CHECK ((kind = 'heartbeat') = (ping_token IS NOT NULL)),
  CONSTRAINT fk_monitoring_checks_infrastructure_id FOREIGN KEY(infrastructure_id) REFERENCES infrastructure (id) ON DELETE SET NULL,
  CONSTRAINT fk_monitoring_checks_owner_id FOREIGN KEY(owner_id) REFERENCES users (id) ON DELETE RESTRICT,
  CONSTRAINT ck_monitoring_checks_seconds CHECK (interval_seconds BETWEEN 5 AND 86400 AND timeout_seconds BETWEEN 0.1 AND 60 AND retry_seconds BETWEEN 1 AND 86400),
  CONSTRAINT fk_monitoring_checks_application_id FOREIGN KEY(application_id) REFERENCES applications (id) ON DELETE SET NULL,
  CONSTRAINT ck_monitoring_checks_objects CHECK (jsonb_typeof(config) = 'object' AND jsonb_typeof(labels) = 'object'),
  CONSTRAINT ck_monitoring_checks_thresholds CHECK (failure_threshold BETWEEN 1 AND 100 AND success_threshold BETWEEN 1 AND 100),
  CONSTRAINT ck_monitoring_checks_severity CHECK (severity IN ('low', 'medium', 'high', 'critical')),
  CONSTRAINT ck_monitoring_checks_kind CHECK (kind IN ('http', 'tcp', 'tls', 'dns', 'postgres', 'redis', 'celery', 'system', 'heartbeat'))
);
CREATE INDEX ix_monitoring_checks_application_id ON monitoring_checks (application_id, id);
CREATE INDEX ix_monitoring_checks_infrastructure_id ON monitoring_checks (infrastructure_id, id);
CREATE INDEX ix_monitoring_checks_owner_id ON monitoring_checks (owner_id, id);
CREATE UNIQUE INDEX uq_monitoring_checks_name ON monitoring_checks (lower(name));
CREATE UNIQUE INDEX uq_monitoring_checks_ping_token ON monitoring_checks (ping_token);

-- Where a check stands, one row each. Written at every run: no audit, and half a page is kept for moved rows.
CREATE TABLE check_states (
  check_id BIGINT NOT NULL,
  state TEXT DEFAULT 'unknown' NOT NULL,
  since_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  seen TEXT,
  downs BIGINT DEFAULT '0' NOT NULL,
  bads BIGINT DEFAULT '0' NOT NULL,
  goods BIGINT DEFAULT '0' NOT NULL,
  betters BIGINT DEFAULT '0' NOT NULL,
  blinds BIGINT DEFAULT '0' NOT NULL,
  blind_at TIMESTAMP WITH TIME ZONE,
  changes BIGINT DEFAULT '0' NOT NULL,
  is_flapping BOOLEAN DEFAULT 'false' NOT NULL,
  next_run_at TIMESTAMP WITH TIME ZONE,
  scheduled_at TIMESTAMP WITH TIME ZONE,
  batch_id UUID,
  last_run_at TIMESTAMP WITH TIME ZONE,
  last_status TEXT,
  last_latency_seconds REAL,
  last_message TEXT,
  last_facts JSONB,
  beat_since_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  beat_at TIMESTAMP WITH TIME ZONE,
  beat_failed BOOLEAN DEFAULT 'false' NOT NULL,
  beat_started_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_check_states PRIMARY KEY (check_id),
  CONSTRAINT ck_check_states_last_status CHECK (last_status IN ('up', 'degraded', 'down', 'unknown', 'missed')),
  CONSTRAINT ck_check_states_seen CHECK (seen IN ('up', 'degraded', 'down')),
  CONSTRAINT ck_check_states_in_flight CHECK ((scheduled_at IS NULL) = (batch_id IS NULL)),
  CONSTRAINT ck_check_states_blind_at CHECK ((blinds = 0) = (blind_at IS NULL)),
  CONSTRAINT ck_check_states_state CHECK (state IN ('up', 'degraded', 'down', 'unknown', 'paused')),
  CONSTRAINT ck_check_states_paused CHECK ((state = 'paused') = (next_run_at IS NULL)),
  CONSTRAINT fk_check_states_check_id FOREIGN KEY(check_id) REFERENCES monitoring_checks (id) ON DELETE CASCADE
) WITH (fillfactor = 50);
CREATE INDEX ix_check_states_next_run_at ON check_states (next_run_at);
CREATE INDEX ix_check_states_state ON check_states (state, check_id) WHERE state IN ('down', 'degraded');

-- What one run has seen; one partition per day. No foreign key: a day is dropped without a lock on the checks.
CREATE TABLE check_results (
  check_id BIGINT NOT NULL,
  at TIMESTAMP WITH TIME ZONE NOT NULL,
  status TEXT NOT NULL,
  latency_seconds REAL,
  message TEXT,
  facts JSONB,
  CONSTRAINT pk_check_results PRIMARY KEY (check_id, at),
  CONSTRAINT ck_check_results_status CHECK (status IN ('up', 'degraded', 'down', 'unknown', 'missed'))
) PARTITION BY RANGE (at);
CREATE INDEX ix_check_results_at ON check_results USING brin (at);

-- All runs of a check in one hour or UTC day.
CREATE TABLE check_rollups (
  check_id BIGINT NOT NULL,
  span TEXT NOT NULL,
  starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
  count BIGINT NOT NULL,
  downs BIGINT NOT NULL,
  degraded BIGINT NOT NULL,
  unknowns BIGINT NOT NULL,
  missed BIGINT NOT NULL,
  -- Dozens of them, none beyond the runs of a day.
  -- squawk-ignore prefer-bigint-over-int
  histogram INTEGER[] NOT NULL,
  CONSTRAINT pk_check_rollups PRIMARY KEY (check_id, span, starts_at),
  CONSTRAINT ck_check_rollups_counts CHECK (count >= downs + degraded AND least(count, downs, degraded, unknowns, missed) >= 0),
  CONSTRAINT fk_check_rollups_check_id FOREIGN KEY(check_id) REFERENCES monitoring_checks (id) ON DELETE CASCADE,
  CONSTRAINT ck_check_rollups_span CHECK (span IN ('hour', 'day'))
);
CREATE INDEX ix_check_rollups_starts_at ON check_rollups (span, starts_at);

-- A time during which a check stood in one state; unknown is every time at which the platform could not know.
CREATE TABLE check_intervals (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  check_id BIGINT NOT NULL,
  state TEXT NOT NULL,
  started_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ended_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_check_intervals PRIMARY KEY (id),
  CONSTRAINT ck_check_intervals_state CHECK (state IN ('up', 'degraded', 'down', 'unknown', 'paused')),
  CONSTRAINT ck_check_intervals_ended_at CHECK (ended_at >= started_at),
  CONSTRAINT fk_check_intervals_check_id FOREIGN KEY(check_id) REFERENCES monitoring_checks (id) ON DELETE CASCADE
);
CREATE INDEX ix_check_intervals_check_id ON check_intervals (check_id, started_at);
CREATE INDEX ix_check_intervals_ended_at ON check_intervals (ended_at);
CREATE UNIQUE INDEX uq_check_intervals_open ON check_intervals (check_id) WHERE ended_at IS NULL;

-- Make the partitions of today and of the next p_ahead days that are missing.
CREATE FUNCTION ops_checks_make_partitions(p_ahead bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '500ms' AS $$
DECLARE
  day date;
  part text;
  made bigint := 0;
BEGIN
  LOCK TABLE ONLY check_results IN SHARE UPDATE EXCLUSIVE MODE;  -- one at a time
  FOR i IN 0..least(greatest(p_ahead, 1), 60)::int LOOP
    day := (now() + make_interval(days => i))::date;
    part := format('check_results_%s', to_char(day, 'YYYY_MM_DD'));
    CONTINUE WHEN EXISTS (SELECT FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
      WHERE inhparent = 'check_results'::regclass AND c.relname = part);
    EXECUTE format('CREATE TABLE %I PARTITION OF check_results FOR VALUES FROM (%L) TO (%L)',
      part, day::timestamptz, (day + 1)::timestamptz);
    made := made + 1;
  END LOOP;
  RETURN made;
EXCEPTION WHEN lock_not_available THEN
  RAISE WARNING 'no partition of check results was made: somebody uses them in an open transaction';
  RETURN 0;
END $$;

-- Drop the days that ended more than p_keep_days ago, never less than two: their hours are added up by then.
CREATE FUNCTION ops_checks_drop_partitions(p_keep_days bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '500ms' AS $$
DECLARE
  part record;
  dropped bigint := 0;
BEGIN
  IF p_keep_days < 2 THEN
    RAISE EXCEPTION 'check results are kept for at least 2 days, not %', p_keep_days;
  END IF;
  LOCK TABLE ONLY check_results IN SHARE UPDATE EXCLUSIVE MODE;
  FOR part IN
    SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
    WHERE inhparent = 'check_results'::regclass AND c.relname ~ '^check_results_\d{4}_\d{2}_\d{2}$'
      AND right(c.relname, 10) COLLATE "C" < to_char(now() - make_interval(days => p_keep_days::int), 'YYYY_MM_DD')
  LOOP
    EXECUTE format('DROP TABLE %I', part.relname);
    dropped := dropped + 1;
  END LOOP;
  RETURN dropped;
EXCEPTION WHEN lock_not_available THEN
  RAISE WARNING 'no partition of check results was dropped: somebody uses them in an open transaction';
  RETURN 0;
END $$;

REVOKE ALL ON FUNCTION ops_checks_make_partitions(bigint), ops_checks_drop_partitions(bigint) FROM PUBLIC;
SELECT ops_checks_make_partitions(7);
-- Addresses, headers and bodies may hold what nobody else should read: that they changed is recorded, not how.
SELECT ops_audit_watch('monitoring_checks', '{config,ping_token}', '{updated_at,version_id}', 'check');
