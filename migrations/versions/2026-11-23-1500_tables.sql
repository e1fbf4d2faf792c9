-- The tables. Invariants stand here as well as in the code: CHECKs, partial unique indexes, foreign keys with an index.

-- A program and how to put one version of it somewhere.
CREATE TABLE applications (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  name TEXT NOT NULL,
  description TEXT,
  command JSONB DEFAULT '[]' NOT NULL,
  working_directory TEXT,
  health_check_url TEXT,
  configuration JSONB DEFAULT '{}' NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_applications PRIMARY KEY (id),
  CONSTRAINT ck_applications_command CHECK (jsonb_typeof(command) = 'array'),
  CONSTRAINT ck_applications_configuration CHECK (jsonb_typeof(configuration) = 'object')
);
CREATE UNIQUE INDEX uq_applications_name ON applications (lower(name));

-- One thing that happened, written by the database in the transaction in which it happened.
CREATE TABLE audit_logs (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
  action TEXT NOT NULL,
  resource_type TEXT NOT NULL,
  resource_id TEXT,
  actor_type TEXT NOT NULL,
  actor_id BIGINT,
  actor TEXT NOT NULL,
  client TEXT,
  ip_address INET,
  user_agent TEXT,
  request_id TEXT,
  task_id UUID,
  db_user TEXT DEFAULT session_user NOT NULL,
  changes JSONB,
  details JSONB,
  CONSTRAINT pk_audit_logs PRIMARY KEY (id, at),
  CONSTRAINT ck_audit_logs_actor_type CHECK (actor_type IN ('user', 'system', 'worker', 'beat', 'database'))
) PARTITION BY RANGE (at);
CREATE INDEX ix_audit_logs_action ON audit_logs (action text_pattern_ops, id);
CREATE INDEX ix_audit_logs_actor ON audit_logs (actor, id);
CREATE INDEX ix_audit_logs_actor_id ON audit_logs (actor_id, id) WHERE actor_id IS NOT NULL;
CREATE INDEX ix_audit_logs_at ON audit_logs USING brin (at);
CREATE INDEX ix_audit_logs_changes ON audit_logs USING gin (changes);
CREATE INDEX ix_audit_logs_opened ON audit_logs ((details ->> 'name'), id) WHERE action = 'secret.opened';
CREATE INDEX ix_audit_logs_resource ON audit_logs (resource_type, resource_id, id);
CREATE INDEX ix_audit_logs_task_id ON audit_logs (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX ix_audit_logs_xid ON audit_logs (xid, id);

-- A run of audit entries in the order of their transactions, their hashes, and a signature whose key the database
-- never sees. Each names the seal before it.
CREATE TABLE audit_seals (
  number BIGINT NOT NULL,
  sealed_at TIMESTAMP WITH TIME ZONE NOT NULL,
  cluster BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  floor_id BIGINT NOT NULL,
  highest_id BIGINT NOT NULL,
  from_xid xid8 NOT NULL,
  from_id BIGINT NOT NULL,
  to_xid xid8 NOT NULL,
  to_id BIGINT NOT NULL,
  next_xid xid8 NOT NULL,
  count BIGINT NOT NULL,
  first_at TIMESTAMP WITH TIME ZONE NOT NULL,
  last_at TIMESTAMP WITH TIME ZONE NOT NULL,
  form BIGINT NOT NULL,
  entries BYTEA NOT NULL,
  root BYTEA NOT NULL,
  previous BYTEA NOT NULL,
  digest BYTEA NOT NULL,
  key_id TEXT NOT NULL,
  signature BYTEA NOT NULL,
  CONSTRAINT pk_audit_seals PRIMARY KEY (number),
  CONSTRAINT ck_audit_seals_entries CHECK (count BETWEEN 1 AND 100000 AND octet_length(entries) = count * 24),
  CONSTRAINT ck_audit_seals_lengths CHECK (octet_length(root) = 32 AND octet_length(previous) = 32 AND octet_length(digest) = 32 AND octet_length(signature) = 64 AND length(key_id) <= 32)
);
-- Hashes do not compress.
ALTER TABLE audit_seals ALTER COLUMN entries SET STORAGE EXTERNAL;

-- A key id this database has seen, with a value sealed by it: a process whose key does not open it stops.
-- A retired one seals nothing any more, and has no such value.
CREATE TABLE encryption_keys (
  id TEXT NOT NULL,
  check_value TEXT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  retired_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_encryption_keys PRIMARY KEY (id),
  CONSTRAINT ck_encryption_keys_retired CHECK ((retired_at IS NULL) = (check_value IS NOT NULL))
);

-- A durable task. The row is the truth; a message in the broker is a doorbell that carries its id.
CREATE TABLE jobs (
  id UUID NOT NULL,
  seq BIGINT GENERATED ALWAYS AS IDENTITY,
  task TEXT NOT NULL,
  queue TEXT NOT NULL,
  args JSONB DEFAULT '[]' NOT NULL,
  kwargs JSONB DEFAULT '{}' NOT NULL,
  context JSONB DEFAULT '{}' NOT NULL,
  priority SMALLINT DEFAULT '5' NOT NULL,
  idempotent BOOLEAN DEFAULT 'false' NOT NULL,
  unique_key TEXT,
  unique_while TEXT DEFAULT 'live' NOT NULL,
  lock_key TEXT,
  max_attempts INTEGER DEFAULT '3' NOT NULL,
  max_rescues INTEGER DEFAULT '2' NOT NULL,
  timeout_seconds INTEGER DEFAULT '3600' NOT NULL,
  lease_seconds FLOAT DEFAULT '9' NOT NULL,
  backoff_seconds FLOAT DEFAULT '2' NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  run_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  expires_at TIMESTAMP WITH TIME ZONE,
  state TEXT DEFAULT 'queued' NOT NULL,
  outcome TEXT,
  attempt INTEGER DEFAULT '0' NOT NULL,
  failures INTEGER DEFAULT '0' NOT NULL,
  rescues INTEGER DEFAULT '0' NOT NULL,
  error TEXT,
  result JSONB,
  cancel_requested_at TIMESTAMP WITH TIME ZONE,
  started_at TIMESTAMP WITH TIME ZONE,
  began_at TIMESTAMP WITH TIME ZONE,
  deadline_at TIMESTAMP WITH TIME ZONE,
  finished_at TIMESTAMP WITH TIME ZONE,
  worker TEXT,
  worker_host TEXT,
  holders TEXT[],
  fence BIGINT,
  lease_token UUID,
  done_token UUID,
  ring_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  rings INTEGER DEFAULT '0' NOT NULL,
  lease_until TIMESTAMP WITH TIME ZONE,
  suspect_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_jobs PRIMARY KEY (id),
  CONSTRAINT ck_jobs_attempts CHECK (max_attempts >= 1 AND max_rescues >= 0),
  CONSTRAINT ck_jobs_finished_at CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
  CONSTRAINT ck_jobs_token CHECK (state <> 'running' OR lease_token IS NOT NULL),
  CONSTRAINT ck_jobs_outcome CHECK (outcome IN ('ok', 'failed', 'timeout', 'lost', 'interrupted', 'cancelled', 'expired')),
  CONSTRAINT ck_jobs_seconds CHECK (timeout_seconds > 0 AND lease_seconds BETWEEN 1 AND 86400 AND backoff_seconds BETWEEN 0 AND 86400),
  CONSTRAINT ck_jobs_names CHECK (octet_length(task) BETWEEN 1 AND 255 AND octet_length(queue) BETWEEN 1 AND 255 AND queue NOT LIKE 'amq.%'),
  CONSTRAINT ck_jobs_arguments CHECK (jsonb_typeof(args) = 'array' AND jsonb_typeof(kwargs) = 'object'),
  CONSTRAINT ck_jobs_times CHECK (run_at BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' AND ring_at BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00' AND expires_at BETWEEN '2000-01-01 00:00:00+00' AND '9999-01-01 00:00:00+00'),
  -- What stands here is written into the trail at every move: were it refused there, neither the job nor the rescue of
  -- others could move.
  CONSTRAINT ck_jobs_context CHECK (jsonb_typeof(context) = 'object' AND length(context->>'actor') <= 200 AND (context->>'actor_type') IN ('user', 'system', 'worker', 'beat', 'database') AND (context->>'actor_id')::bigint > 0 AND family((context->>'ip_address')::inet) > 0),
  CONSTRAINT ck_jobs_ok CHECK ((state = 'succeeded') = (outcome IS NOT NULL AND outcome = 'ok')),
  CONSTRAINT ck_jobs_cancelled CHECK (state <> 'cancelled' OR outcome IN ('cancelled', 'expired')),
  CONSTRAINT ck_jobs_priority CHECK (priority BETWEEN 0 AND 9),
  CONSTRAINT ck_jobs_lease CHECK ((state = 'running') = (lease_until IS NOT NULL)),
  CONSTRAINT ck_jobs_failed CHECK (state <> 'failed' OR (outcome IN ('failed', 'timeout', 'lost', 'interrupted') AND error IS NOT NULL)),
  CONSTRAINT ck_jobs_state CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
  CONSTRAINT ck_jobs_unique_while CHECK (unique_while IN ('queued', 'live'))
) WITH (fillfactor = 70);
CREATE INDEX ix_jobs_expires ON jobs (expires_at) WHERE state = 'queued' AND expires_at IS NOT NULL;
CREATE INDEX ix_jobs_finished_at ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX ix_jobs_ring ON jobs (queue, priority, ring_at) WHERE state = 'queued';
CREATE INDEX ix_jobs_running ON jobs (id) WHERE state = 'running';
CREATE INDEX ix_jobs_seq ON jobs (seq);
CREATE INDEX ix_jobs_state ON jobs (state, seq);
CREATE INDEX ix_jobs_task ON jobs (task, seq);
CREATE INDEX ix_jobs_waiters ON jobs (lock_key, queue, priority, seq) WHERE state = 'queued' AND lock_key IS NOT NULL;
CREATE UNIQUE INDEX uq_jobs_lock_key_running ON jobs (lock_key) WHERE state = 'running';
CREATE UNIQUE INDEX uq_jobs_unique_key_live ON jobs (unique_key) WHERE state IN ('queued', 'running') AND unique_while = 'live';
CREATE UNIQUE INDEX uq_jobs_unique_key_queued ON jobs (unique_key) WHERE state = 'queued' AND unique_while = 'queued' AND attempt = 0;

-- One row: whether the ledger starts anything, and on which server it last did.
CREATE TABLE ledger_state (
  id BOOLEAN DEFAULT true NOT NULL,
  paused_at TIMESTAMP WITH TIME ZONE,
  paused_because TEXT,
  reason TEXT,
  server BIGINT NOT NULL,
  timeline TEXT NOT NULL,
  server_started_at TIMESTAMP WITH TIME ZONE NOT NULL,
  trusts_failover BOOLEAN DEFAULT false NOT NULL,
  CONSTRAINT pk_ledger_state PRIMARY KEY (id),
  CONSTRAINT ck_ledger_state_one_row CHECK (id),
  CONSTRAINT ck_ledger_state_paused_because CHECK (paused_because IN ('asked', 'restored')),
  CONSTRAINT ck_ledger_state_paused_at CHECK ((paused_at IS NULL) = (paused_because IS NULL))
);

-- What has been used up of the attempts to log in of one account, one address, or one account at one address.
CREATE TABLE login_limits (
  key TEXT NOT NULL,
  refills_at TIMESTAMP WITH TIME ZONE NOT NULL,
  succeeded_at TIMESTAMP WITH TIME ZONE,
  refused BIGINT DEFAULT '0' NOT NULL,
  told_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_login_limits PRIMARY KEY (key)
);
CREATE INDEX ix_login_limits_refills_at ON login_limits (refills_at);

-- One running process of the platform, keyed by the id it gave itself at its start.
CREATE TABLE processes (
  id TEXT NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  host TEXT NOT NULL,
  pid BIGINT NOT NULL,
  info JSONB DEFAULT '{}' NOT NULL,
  started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
  CONSTRAINT pk_processes PRIMARY KEY (id),
  CONSTRAINT ck_processes_kind CHECK (kind IN ('worker', 'beat', 'relay'))
);
CREATE INDEX ix_processes_seen_at ON processes (kind, seen_at);

-- When a periodic job last ran, so that any number of beats drive it no faster than one would.
CREATE TABLE ticks (
  name TEXT NOT NULL,
  last_run_at TIMESTAMP WITH TIME ZONE,
  last_success_at TIMESTAMP WITH TIME ZONE,
  idle_runs BIGINT DEFAULT '0' NOT NULL,
  reported_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_ticks PRIMARY KEY (name)
);

-- A person or a program that acts. Names and addresses are unique whatever their case.
CREATE TABLE users (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  username TEXT NOT NULL,
  email TEXT NOT NULL,
  hashed_password TEXT,
  role TEXT DEFAULT 'operator' NOT NULL,
  is_active BOOLEAN DEFAULT 'true' NOT NULL,
  last_login_at TIMESTAMP WITH TIME ZONE,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_users PRIMARY KEY (id),
  CONSTRAINT ck_users_role CHECK (role IN ('viewer', 'operator', 'admin'))
);
-- The name first: where both are taken, it is the name that one is told of.
CREATE UNIQUE INDEX uq_users_username ON users (lower(username));
CREATE UNIQUE INDEX uq_users_email ON users (lower(email));

-- A secret named ``service_name/key_name`` that belongs to a user; encrypted in the table.
CREATE TABLE api_keys (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  user_id BIGINT NOT NULL,
  service_name TEXT NOT NULL,
  key_name TEXT NOT NULL,
  encrypted_value TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_api_keys PRIMARY KEY (id),
  CONSTRAINT uq_api_keys_user_id_service_name_key_name UNIQUE (user_id, service_name, key_name),
  CONSTRAINT fk_api_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

-- A place to deploy to: a driver with its settings, and the owner whose secrets a deployment opens.
CREATE TABLE infrastructure (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  name TEXT NOT NULL,
  provider TEXT DEFAULT 'local' NOT NULL,
  region TEXT,
  environment TEXT DEFAULT 'dev' NOT NULL,
  driver TEXT DEFAULT 'command' NOT NULL,
  settings JSONB DEFAULT '{}' NOT NULL,
  encrypted_settings TEXT,
  owner_id BIGINT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_infrastructure PRIMARY KEY (id),
  CONSTRAINT ck_infrastructure_environment CHECK (environment IN ('dev', 'staging', 'production')),
  CONSTRAINT ck_infrastructure_settings CHECK (jsonb_typeof(settings) = 'object'),
  CONSTRAINT fk_infrastructure_owner_id FOREIGN KEY(owner_id) REFERENCES users (id) ON DELETE RESTRICT
);
CREATE INDEX ix_infrastructure_owner_id ON infrastructure (owner_id, id);
CREATE UNIQUE INDEX uq_infrastructure_name ON infrastructure (lower(name));

-- Puts a version of an application on an infrastructure. Its status follows its job.
CREATE TABLE deployments (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  user_id BIGINT NOT NULL,
  application_id BIGINT NOT NULL,
  infrastructure_id BIGINT NOT NULL,
  version TEXT NOT NULL,
  status TEXT DEFAULT 'pending' NOT NULL,
  job_id UUID,
  rollback_deployment_id BIGINT,
  error_message TEXT,
  started_at TIMESTAMP WITH TIME ZONE,
  finished_at TIMESTAMP WITH TIME ZONE,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT pk_deployments PRIMARY KEY (id),
  CONSTRAINT fk_deployments_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_deployments_infrastructure_id FOREIGN KEY(infrastructure_id) REFERENCES infrastructure (id) ON DELETE RESTRICT,
  CONSTRAINT ck_deployments_status CHECK (status IN ('pending', 'running', 'success', 'failed', 'error', 'cancelled', 'rolled_back')),
  CONSTRAINT ck_deployments_finished_at CHECK ((status IN ('pending', 'running')) = (finished_at IS NULL)),
  CONSTRAINT fk_deployments_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE RESTRICT,
  CONSTRAINT fk_deployments_rollback_deployment_id FOREIGN KEY(rollback_deployment_id) REFERENCES deployments (id) ON DELETE SET NULL,
  CONSTRAINT ck_deployments_error_message CHECK ((status IN ('failed', 'error')) <= (error_message IS NOT NULL)),
  CONSTRAINT fk_deployments_application_id FOREIGN KEY(application_id) REFERENCES applications (id) ON DELETE RESTRICT,
  CONSTRAINT ck_deployments_version_length CHECK (length(version) BETWEEN 1 AND 200)
);
CREATE INDEX ix_deployments_application_id ON deployments (application_id, id);
CREATE INDEX ix_deployments_application_id_infrastructure_id ON deployments (application_id, infrastructure_id, id);
CREATE INDEX ix_deployments_infrastructure_id ON deployments (infrastructure_id, id);
CREATE INDEX ix_deployments_rollback_deployment_id ON deployments (rollback_deployment_id) WHERE rollback_deployment_id IS NOT NULL;
CREATE INDEX ix_deployments_status ON deployments (status, id);
CREATE INDEX ix_deployments_user_id ON deployments (user_id, id);
CREATE INDEX ix_deployments_user_id_status ON deployments (user_id, status, id);
CREATE UNIQUE INDEX uq_deployments_job_id ON deployments (job_id);

-- A chunk of output: whole lines, in the order they were printed, secrets masked.
CREATE TABLE deployment_logs (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  deployment_id BIGINT NOT NULL,
  attempt INTEGER NOT NULL,
  stream TEXT NOT NULL,
  content TEXT NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_deployment_logs PRIMARY KEY (id),
  CONSTRAINT ck_deployment_logs_stream CHECK (stream IN ('stdout', 'stderr', 'platform')),
  CONSTRAINT fk_deployment_logs_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE CASCADE
);
CREATE INDEX ix_deployment_logs_deployment_id ON deployment_logs (deployment_id, id);

-- An alert; at most one is open per fingerprint. Raised and resolved by beat jobs, nowhere else.
CREATE TABLE monitoring_alerts (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  fingerprint TEXT NOT NULL,
  alert_type TEXT NOT NULL,
  severity TEXT NOT NULL,
  status TEXT DEFAULT 'firing' NOT NULL,
  title TEXT NOT NULL,
  message TEXT,
  labels JSONB DEFAULT '{}' NOT NULL,
  threshold_value FLOAT,
  current_value FLOAT,
  infrastructure_id BIGINT,
  application_id BIGINT,
  deployment_id BIGINT,
  fired_at TIMESTAMP WITH TIME ZONE,
  acknowledged_at TIMESTAMP WITH TIME ZONE,
  acknowledged_by_id BIGINT,
  resolved_at TIMESTAMP WITH TIME ZONE,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT pk_monitoring_alerts PRIMARY KEY (id),
  CONSTRAINT ck_monitoring_alerts_resolved_at CHECK ((status = 'resolved') = (resolved_at IS NOT NULL)),
  CONSTRAINT fk_monitoring_alerts_deployment_id FOREIGN KEY(deployment_id) REFERENCES deployments (id) ON DELETE SET NULL,
  CONSTRAINT fk_monitoring_alerts_acknowledged_by_id FOREIGN KEY(acknowledged_by_id) REFERENCES users (id) ON DELETE SET NULL,
  CONSTRAINT fk_monitoring_alerts_infrastructure_id FOREIGN KEY(infrastructure_id) REFERENCES infrastructure (id) ON DELETE SET NULL,
  CONSTRAINT ck_monitoring_alerts_status CHECK (status IN ('pending', 'firing', 'resolved')),
  CONSTRAINT ck_monitoring_alerts_fired_at CHECK (status = 'pending' OR fired_at IS NOT NULL),
  CONSTRAINT ck_monitoring_alerts_severity CHECK (severity IN ('low', 'medium', 'high', 'critical')),
  CONSTRAINT fk_monitoring_alerts_application_id FOREIGN KEY(application_id) REFERENCES applications (id) ON DELETE SET NULL
);
CREATE INDEX ix_monitoring_alerts_acknowledged_by_id ON monitoring_alerts (acknowledged_by_id);
CREATE INDEX ix_monitoring_alerts_application_id ON monitoring_alerts (application_id, id);
CREATE INDEX ix_monitoring_alerts_deployment_id ON monitoring_alerts (deployment_id);
CREATE INDEX ix_monitoring_alerts_infrastructure_id ON monitoring_alerts (infrastructure_id, id);
CREATE INDEX ix_monitoring_alerts_status ON monitoring_alerts (status, id);
CREATE UNIQUE INDEX uq_monitoring_alerts_open ON monitoring_alerts (fingerprint) WHERE status <> 'resolved';
