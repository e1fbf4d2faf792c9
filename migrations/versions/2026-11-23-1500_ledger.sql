-- The job ledger. The row is the truth; a message is a doorbell that carries its id.
--
-- Each function below is called as one autocommit statement: the transition, its audit entry, the deployment's status
-- and the hand-over to the next waiter commit together. Lock order everywhere: jobs, deployments, the rest.

-- Grows with every claim, so of two holders of one key the later has the larger number.
CREATE SEQUENCE ops_fence_seq;

-- What a deployment's status is when its job is in this state.
CREATE FUNCTION ops_deployment_status(p_state text, p_outcome text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE p_state
    WHEN 'queued' THEN 'pending' WHEN 'running' THEN 'running' WHEN 'succeeded' THEN 'success'
    WHEN 'cancelled' THEN 'cancelled' WHEN 'failed' THEN
      CASE WHEN p_outcome IN ('lost', 'interrupted') THEN 'error' ELSE 'failed' END
  END
$$;

-- The context of a transition: what the transaction says of its actor, else who asked for the job.
CREATE FUNCTION ops_job_context(p_id uuid, p_context jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
  SELECT CASE WHEN ops_audit_context() ? 'actor' THEN ops_audit_context() ELSE p_context END
    || jsonb_build_object('task_id', p_id)
$$;

-- Every move of a job leaves one entry, whoever made it, and takes its deployment along.
CREATE FUNCTION ops_job_moved() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  context jsonb := ops_job_context(NEW.id, NEW.context);
  before text;
  verb text;
  details jsonb;
  new_status text;
BEGIN
  IF NEW.state IS DISTINCT FROM OLD.state OR NEW.attempt IS DISTINCT FROM OLD.attempt THEN
    verb := CASE
      WHEN NEW.state = 'running' THEN 'started'
      WHEN NEW.state = 'succeeded' THEN 'succeeded'
      WHEN NEW.state = 'queued' THEN 'retried'
      WHEN NEW.state = 'cancelled' THEN CASE WHEN NEW.outcome = 'expired' THEN 'expired' ELSE 'cancelled' END
      WHEN NEW.outcome = 'lost' THEN 'lost'
      ELSE 'failed' END;
    details := jsonb_strip_nulls(jsonb_build_object(
      'task', NEW.task, 'attempt', NEW.attempt, 'worker', NEW.worker, 'outcome', NEW.outcome, 'error', NEW.error,
      'began', CASE WHEN OLD.state = 'running' THEN NEW.began_at IS NOT NULL END,
      'waited_seconds', CASE WHEN NEW.state = 'running'
        THEN round(extract(epoch FROM NEW.started_at - greatest(NEW.run_at, NEW.created_at))::numeric, 3) END,
      'duration_seconds', CASE WHEN OLD.state = 'running'
        THEN round(extract(epoch FROM clock_timestamp() - OLD.started_at)::numeric, 3) END,
      'next_run_at', CASE WHEN NEW.state = 'queued' THEN NEW.run_at END,
      'lock_key', NEW.lock_key));
    PERFORM ops_audit('job.' || verb, 'job', NEW.id::text,
      jsonb_build_object('state', jsonb_build_array(OLD.state, NEW.state)), details, context);
    -- The deployment follows; the entry of its own row is written by its own trigger, in the same context.
    new_status := ops_deployment_status(NEW.state, NEW.outcome);
    IF EXISTS (SELECT FROM deployments d WHERE d.job_id = NEW.id AND d.status <> new_status) THEN
      before := current_setting('ops.context', true);
      PERFORM set_config('ops.context', context::text, true);
      UPDATE deployments d SET status = new_status, updated_at = clock_timestamp(),
        started_at = CASE WHEN NEW.state = 'running' THEN coalesce(d.started_at, NEW.started_at) ELSE d.started_at END,
        finished_at = NEW.finished_at,
        error_message = CASE WHEN NEW.state IN ('failed', 'cancelled') THEN
          CASE WHEN NEW.outcome IN ('lost', 'interrupted') THEN NEW.outcome || ': ' ELSE '' END
          || coalesce(NEW.error, NEW.outcome) END
      WHERE d.job_id = NEW.id;
      PERFORM set_config('ops.context', coalesce(before, ''), true);
    END IF;
  END IF;
  IF OLD.cancel_requested_at IS NULL AND NEW.cancel_requested_at IS NOT NULL AND NEW.state = OLD.state THEN
    PERFORM ops_audit('job.cancel_requested', 'job', NEW.id::text, NULL, jsonb_strip_nulls(jsonb_build_object(
      'attempt', NEW.attempt, 'worker', NEW.worker, 'reason', NEW.error)), context);
  END IF;
  RETURN NULL;
END $$;

-- What no transition does: a change by hand, recorded like any other. TG_ARGV: the columns it looks at.
CREATE FUNCTION ops_job_edited() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  changes jsonb := ops_audit_diff(to_jsonb(OLD), to_jsonb(NEW), '{args,kwargs,result}', '{}');
BEGIN
  SELECT jsonb_object_agg(c.key, c.value) INTO changes FROM jsonb_each(changes) c WHERE c.key = ANY (TG_ARGV[0]::text[]);
  IF changes IS NOT NULL THEN
    PERFORM ops_audit('job.updated', 'job', NEW.id::text, changes, NULL, ops_job_context(NEW.id, NEW.context));
  END IF;
  RETURN NULL;
END $$;

-- One entry per job enqueued, removed or swept away with the whole table.
CREATE FUNCTION ops_jobs_enqueued() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  PERFORM ops_audit('job.enqueued', 'job', j.id::text, NULL, jsonb_strip_nulls(jsonb_build_object(
    -- Its arguments stay in its row: they may be what nobody else should read.
    'task', j.task, 'queue', j.queue, 'lock_key', j.lock_key, 'unique_key', j.unique_key,
    'run_at', CASE WHEN j.run_at > clock_timestamp() THEN j.run_at END,
    'state', CASE WHEN j.state <> 'queued' THEN j.state END)), ops_job_context(j.id, j.context))
  FROM new_rows j ORDER BY j.seq;
  RETURN NULL;
END $$;

CREATE FUNCTION ops_jobs_removed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM ops_audit('job.truncated', 'job', NULL, NULL, jsonb_build_object('rows', (SELECT count(*) FROM jobs)));
  ELSE
    PERFORM ops_audit('job.deleted', 'job', o.id::text, NULL,
      jsonb_build_object('task', o.task, 'state', o.state, 'attempt', o.attempt))
    FROM old_rows o;
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER ops_jobs_enqueued AFTER INSERT ON jobs REFERENCING NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION ops_jobs_enqueued();
CREATE TRIGGER ops_jobs_removed AFTER DELETE ON jobs REFERENCING OLD TABLE AS old_rows
  FOR EACH STATEMENT EXECUTE FUNCTION ops_jobs_removed();
CREATE TRIGGER ops_jobs_truncated BEFORE TRUNCATE ON jobs
  FOR EACH STATEMENT EXECUTE FUNCTION ops_jobs_removed();
-- Row-level, and named by column: heartbeats, bells and marks set none of these, so they pay for none of them.
CREATE TRIGGER ops_job_moved AFTER UPDATE OF state, attempt, cancel_requested_at ON jobs FOR EACH ROW
  EXECUTE FUNCTION ops_job_moved();
-- What is to be done: fixed when it is enqueued, set by no function here.
CREATE TRIGGER ops_job_edited AFTER UPDATE OF id, task, queue, args, kwargs, context, priority, idempotent, unique_key,
    unique_while, lock_key, max_attempts, max_rescues, timeout_seconds, lease_seconds, backoff_seconds, created_at,
    expires_at ON jobs FOR EACH ROW
  EXECUTE FUNCTION ops_job_edited('{id,task,queue,args,kwargs,context,priority,idempotent,unique_key,unique_while,lock_key,
    max_attempts,max_rescues,timeout_seconds,lease_seconds,backoff_seconds,created_at,expires_at}');
-- What came of it: set by transitions, which leave entries of their own.
CREATE TRIGGER ops_job_rewritten AFTER UPDATE OF run_at, outcome, failures, rescues, error, result, cancel_requested_at,
    started_at, deadline_at, finished_at ON jobs FOR EACH ROW
  WHEN (OLD.state = NEW.state AND OLD.attempt = NEW.attempt
    AND NOT (OLD.cancel_requested_at IS NULL AND NEW.cancel_requested_at IS NOT NULL))
  EXECUTE FUNCTION ops_job_edited('{run_at,outcome,failures,rescues,error,result,cancel_requested_at,started_at,
    deadline_at,finished_at}');
