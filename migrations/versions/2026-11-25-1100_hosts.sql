-- One machine of an infrastructure. Positions are unique and bounded, so that none has more than a thousand.
CREATE TABLE hosts (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  infrastructure_id BIGINT NOT NULL,
  name TEXT NOT NULL,
  address TEXT NOT NULL,
  port BIGINT DEFAULT '22' NOT NULL,
  host_key TEXT,
  position BIGINT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_hosts PRIMARY KEY (id),
  CONSTRAINT ck_hosts_port CHECK (port BETWEEN 1 AND 65535),
  CONSTRAINT ck_hosts_position CHECK (position BETWEEN 0 AND 999),
  CONSTRAINT fk_hosts_infrastructure_id FOREIGN KEY (infrastructure_id) REFERENCES infrastructure (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX uq_hosts_infrastructure_id_name ON hosts (infrastructure_id, lower(name));
CREATE UNIQUE INDEX uq_hosts_infrastructure_id_position ON hosts (infrastructure_id, position);

-- What a deployment did to one host, as far as it is known.
CREATE TABLE deployment_hosts (
  deployment_id BIGINT NOT NULL,
  name TEXT NOT NULL,
  position BIGINT NOT NULL,
  batch BIGINT,
  status TEXT DEFAULT 'pending' NOT NULL,
  release TEXT,
  previous_release TEXT,
  message TEXT,
  attempt BIGINT NOT NULL,
  started_at TIMESTAMP WITH TIME ZONE,
  finished_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_deployment_hosts PRIMARY KEY (deployment_id, name),
  CONSTRAINT ck_deployment_hosts_status CHECK (status IN ('pending', 'running', 'switched', 'healthy', 'failed', 'unreachable', 'unknown', 'rolled_back', 'skipped')),
  CONSTRAINT ck_deployment_hosts_finished_at CHECK ((status IN ('pending', 'running', 'switched')) = (finished_at IS NULL)),
  CONSTRAINT fk_deployment_hosts_deployment_id FOREIGN KEY (deployment_id) REFERENCES deployments (id) ON DELETE CASCADE
);

SELECT ops_audit_watch('hosts', '{}', '{updated_at,version_id}', 'host');
SELECT ops_audit_watch('deployment_hosts', '{}', '{started_at,finished_at}', 'deployment_host');

-- A deployment's job has ended, whoever says so: what its hosts are is settled with it. A host that may have been touched,
-- and of which nothing else came, is `unknown`. A success means that all of them are healthy, whether or not the last
-- reports arrived.
CREATE FUNCTION ops_job_moved_hosts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  before text := current_setting('ops.context', true);
BEGIN
  IF NOT EXISTS (SELECT FROM deployments d JOIN deployment_hosts h ON h.deployment_id = d.id
    WHERE d.job_id = NEW.id AND h.status IN ('pending', 'running', 'switched')) THEN
    RETURN NULL;
  END IF;
  PERFORM set_config('ops.context', ops_job_context(NEW.id, NEW.context)::text, true);
  UPDATE deployment_hosts h SET
    status = CASE WHEN h.status = 'pending' OR NEW.began_at IS NULL THEN 'skipped'
      WHEN NEW.state = 'succeeded' THEN 'healthy' ELSE 'unknown' END,
    message = CASE WHEN h.status = 'pending' THEN 'not reached'
      WHEN NEW.state = 'succeeded' THEN h.message
      ELSE concat_ws('; ', h.message, 'nobody can tell how far it went') END,
    finished_at = clock_timestamp()
  FROM deployments d
  WHERE d.job_id = NEW.id AND h.deployment_id = d.id
    AND (h.status IN ('pending', 'running') OR h.status = 'switched' AND NEW.state = 'succeeded');
  PERFORM set_config('ops.context', coalesce(before, ''), true);
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION ops_job_moved_hosts() FROM PUBLIC;

-- After `ops_job_moved`, in the order of their names: jobs, deployments, the rest.
CREATE TRIGGER ops_job_moved_hosts AFTER UPDATE OF state ON jobs FOR EACH ROW
  WHEN (NEW.task = 'tasks.deployments.run' AND OLD.state IN ('queued', 'running')
    AND NEW.state IN ('succeeded', 'failed', 'cancelled'))
  EXECUTE FUNCTION ops_job_moved_hosts();
