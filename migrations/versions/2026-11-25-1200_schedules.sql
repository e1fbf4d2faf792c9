-- What happens by itself: when, what, with whose rights, and where it stands.
CREATE TABLE schedules (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  name TEXT NOT NULL,
  kind TEXT NOT NULL,
  cron TEXT,
  timezone TEXT DEFAULT 'UTC' NOT NULL,
  every_seconds BIGINT,
  anchor_at TIMESTAMP WITH TIME ZONE NOT NULL,
  once_at TIMESTAMP WITH TIME ZONE,
  application_id BIGINT,
  infrastructure_id BIGINT,
  version TEXT,
  task TEXT,
  queue TEXT,
  args JSONB DEFAULT '[]' NOT NULL,
  kwargs JSONB DEFAULT '{}' NOT NULL,
  idempotent BOOLEAN DEFAULT 'false' NOT NULL,
  max_attempts BIGINT DEFAULT '3' NOT NULL,
  timeout_seconds BIGINT DEFAULT '3600' NOT NULL,
  -- 0 to 9.
  -- squawk-ignore prefer-bigint-over-smallint
  priority SMALLINT DEFAULT '5' NOT NULL,
  overlap TEXT DEFAULT 'skip' NOT NULL,
  catch_up TEXT DEFAULT 'none' NOT NULL,
  pause_on_failure BIGINT,
  user_id BIGINT NOT NULL,
  paused_at TIMESTAMP WITH TIME ZONE,
  paused_because TEXT,
  resumed_at TIMESTAMP WITH TIME ZONE,
  next_run_at TIMESTAMP WITH TIME ZONE,
  last_fired_at TIMESTAMP WITH TIME ZONE,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_schedules PRIMARY KEY (id),
  CONSTRAINT ck_schedules_kind CHECK (kind IN ('cron', 'interval', 'once')),
  CONSTRAINT ck_schedules_overlap CHECK (overlap IN ('skip', 'queue')),
  CONSTRAINT ck_schedules_catch_up CHECK (catch_up IN ('none', 'one')),
  CONSTRAINT ck_schedules_timing CHECK ((kind = 'cron') = (cron IS NOT NULL) AND (kind = 'interval') = (every_seconds IS NOT NULL) AND (kind = 'once') = (once_at IS NOT NULL)),
  CONSTRAINT ck_schedules_work CHECK (CASE WHEN task IS NULL THEN queue IS NULL AND num_nonnulls(application_id, infrastructure_id, version) = 3 ELSE queue IS NOT NULL AND num_nonnulls(application_id, infrastructure_id, version) = 0 END),
  CONSTRAINT ck_schedules_names CHECK (octet_length(task) BETWEEN 1 AND 255 AND octet_length(queue) BETWEEN 1 AND 255 AND queue NOT LIKE 'amq.%'),
  CONSTRAINT ck_schedules_arguments CHECK (jsonb_typeof(args) = 'array' AND jsonb_typeof(kwargs) = 'object'),
  CONSTRAINT ck_schedules_version_length CHECK (length(version) BETWEEN 1 AND 200),
  CONSTRAINT ck_schedules_numbers CHECK (every_seconds BETWEEN 1 AND 31622400 AND timeout_seconds BETWEEN 1 AND 604800 AND max_attempts BETWEEN 1 AND 100 AND priority BETWEEN 0 AND 9 AND pause_on_failure BETWEEN 1 AND 100),
  CONSTRAINT ck_schedules_times CHECK (anchor_at BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' AND once_at BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' AND next_run_at BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00'),
  CONSTRAINT ck_schedules_paused_because CHECK ((paused_at IS NULL) = (paused_because IS NULL)),
  CONSTRAINT ck_schedules_paused_at CHECK (paused_at IS NULL OR next_run_at IS NULL),
  CONSTRAINT fk_schedules_application_id FOREIGN KEY(application_id) REFERENCES applications (id) ON DELETE RESTRICT,
  CONSTRAINT fk_schedules_infrastructure_id FOREIGN KEY(infrastructure_id) REFERENCES infrastructure (id) ON DELETE RESTRICT,
  CONSTRAINT fk_schedules_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE RESTRICT
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX uq_schedules_name ON schedules (lower(name));
CREATE INDEX ix_schedules_next_run_at ON schedules (next_run_at, id) WHERE next_run_at IS NOT NULL;
CREATE INDEX ix_schedules_user_id ON schedules (user_id, id);
CREATE INDEX ix_schedules_application_id ON schedules (application_id);
CREATE INDEX ix_schedules_infrastructure_id ON schedules (infrastructure_id);

-- What became of one time of a schedule: each time has one row, whoever fires it.
CREATE TABLE schedule_runs (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  schedule_id BIGINT NOT NULL,
  fire_at TIMESTAMP WITH TIME ZONE NOT NULL,
  fired_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  by_hand BOOLEAN DEFAULT 'false' NOT NULL,
  outcome TEXT NOT NULL,
  reason TEXT,
  job_id UUID,
  deployment_id BIGINT,
  CONSTRAINT pk_schedule_runs PRIMARY KEY (id),
  CONSTRAINT ck_schedule_runs_outcome CHECK (outcome IN ('enqueued', 'skipped', 'failed')),
  CONSTRAINT ck_schedule_runs_job_id CHECK ((outcome = 'enqueued') = (job_id IS NOT NULL)),
  CONSTRAINT ck_schedule_runs_reason CHECK (outcome = 'enqueued' OR reason IS NOT NULL),
  CONSTRAINT fk_schedule_runs_schedule_id FOREIGN KEY(schedule_id) REFERENCES schedules (id) ON DELETE CASCADE,
  CONSTRAINT fk_schedule_runs_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE SET NULL
);
CREATE UNIQUE INDEX uq_schedule_runs_schedule_id_fire_at ON schedule_runs (schedule_id, fire_at);
CREATE INDEX ix_schedule_runs_tried ON schedule_runs (schedule_id, fire_at) WHERE outcome <> 'skipped';
CREATE INDEX ix_schedule_runs_fired_at ON schedule_runs (fired_at);
CREATE INDEX ix_schedule_runs_deployment_id ON schedule_runs (deployment_id) WHERE deployment_id IS NOT NULL;

-- What a task is given may hold what nobody else should read: that it changed is recorded, not how.
SELECT ops_audit_watch('schedules', '{args,kwargs}', '{updated_at,version_id,next_run_at,last_fired_at}', 'schedule');
SELECT ops_audit_watch('schedule_runs', '{}', '{}', 'schedule_run');
