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

-- Write a job in the caller's transaction. An id made by the caller makes the call repeatable; a taken unique key
-- answers with the job that holds it and created = false. p_rung: the caller will ring it himself after commit, so
-- the relay gives him two seconds.
CREATE FUNCTION ops_enqueue(
  p_task text, p_args jsonb DEFAULT '[]', p_kwargs jsonb DEFAULT '{}', p_queue text DEFAULT 'control',
  p_id uuid DEFAULT NULL, p_run_at timestamptz DEFAULT NULL, p_expires_at timestamptz DEFAULT NULL,
  p_priority int DEFAULT 5, p_lock_key text DEFAULT NULL, p_unique_key text DEFAULT NULL,
  p_unique_while text DEFAULT 'live', p_idempotent boolean DEFAULT false, p_max_attempts int DEFAULT 3,
  p_max_rescues int DEFAULT 2, p_timeout_seconds int DEFAULT 3600, p_lease_seconds float DEFAULT 9,
  p_backoff_seconds float DEFAULT 2, p_rung boolean DEFAULT false,
  OUT id uuid, OUT created boolean
)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  new_id uuid := coalesce(p_id, gen_random_uuid());
  due timestamptz := greatest(coalesce(p_run_at, clock_timestamp()), clock_timestamp());
BEGIN
  created := false;
  FOR i IN 1..10 LOOP
    INSERT INTO jobs AS j (id, task, queue, args, kwargs, context, priority, idempotent, unique_key, unique_while,
      lock_key, max_attempts, max_rescues, timeout_seconds, lease_seconds, backoff_seconds, run_at, expires_at, ring_at)
    VALUES (new_id, p_task, p_queue, p_args, p_kwargs, ops_audit_context() - 'task_id' - 'action', p_priority,
      p_idempotent, p_unique_key, p_unique_while, p_lock_key, p_max_attempts, p_max_rescues, p_timeout_seconds,
      p_lease_seconds, p_backoff_seconds, due, p_expires_at,
      CASE WHEN p_rung AND p_run_at IS NULL THEN due + interval '2 s' ELSE due END)
    ON CONFLICT DO NOTHING
    RETURNING j.id INTO id;
    IF FOUND THEN
      created := true;
      RETURN;
    END IF;
    SELECT j.id INTO id FROM jobs j WHERE j.id = new_id;
    IF NOT FOUND THEN
      -- What waits to be tried again stands for no new request: were it to, two could not wait at once.
      SELECT j.id INTO id FROM jobs j WHERE j.unique_key = p_unique_key AND j.unique_while = p_unique_while
        AND (j.state = 'queued' AND (j.attempt = 0 OR p_unique_while = 'live')
          OR j.state = 'running' AND p_unique_while = 'live');
    END IF;
    EXIT WHEN FOUND;  -- else the holder ended in between: try again
  END LOOP;
  IF id IS NULL THEN
    RAISE EXCEPTION 'could not enqueue %: its unique key % changes hands all the time', p_task, p_unique_key;
  END IF;
END $$;

-- Ring one queued job that is due, and leave it alone for a second; returns its bell to publish after commit, or none.
-- SKIP LOCKED, because waiting here would deadlock with a claim; a skipped bell is rung by the relay.
CREATE FUNCTION ops_ring(p_id uuid) RETURNS jsonb
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  j jobs;
BEGIN
  UPDATE jobs SET ring_at = clock_timestamp() + interval '1 s' WHERE id = (
    SELECT w.id FROM jobs w WHERE w.id = p_id AND w.state = 'queued' AND w.run_at <= clock_timestamp()
    FOR NO KEY UPDATE SKIP LOCKED)
  RETURNING * INTO j;
  RETURN CASE WHEN FOUND THEN jsonb_build_array(jsonb_build_object(
    'id', j.id, 'task', j.task, 'queue', j.queue, 'priority', j.priority)) ELSE '[]' END;
END $$;

-- Ring whoever may run now that a job has ended or waits again: the head waiter of each queue of its key, if the key
-- is free; without a key the job itself.
CREATE FUNCTION ops_ring_next(p_id uuid, p_key text) RETURNS jsonb
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  bells jsonb := '[]';
  head uuid;
  in_queue text := '';
BEGIN
  IF p_key IS NULL THEN
    RETURN ops_ring(p_id);
  ELSIF EXISTS (SELECT FROM jobs r WHERE r.lock_key = p_key AND r.state = 'running') THEN
    RETURN bells;
  END IF;
  LOOP
    SELECT w.queue INTO in_queue FROM jobs w WHERE w.lock_key = p_key AND w.state = 'queued' AND w.queue > in_queue
      ORDER BY w.queue LIMIT 1;
    EXIT WHEN NOT FOUND;
    SELECT w.id INTO head FROM jobs w WHERE w.lock_key = p_key AND w.queue = in_queue AND w.state = 'queued'
      AND w.run_at <= clock_timestamp() ORDER BY w.priority, w.seq LIMIT 1;
    IF FOUND THEN
      bells := bells || ops_ring(head);
    END IF;
  END LOOP;
  RETURN bells;
END $$;

-- Decide one doorbell. `run`: this caller holds the job now, until its lease runs out. Everything else: nothing to do.
-- `duplicate`, `unknown`, `wrong_task` are counted by the caller; `lock_busy`, `lock_raced`, `not_head`, `not_due`, `paused`
-- spend the bell while the job waits on; `expired` has just been cancelled. Repeating the call with the same token,
-- after an answer was lost, gives the same verdict.
CREATE FUNCTION ops_claim(
  p_id uuid, p_task text, p_token uuid, p_worker text, p_host text, p_holders text[]
) RETURNS TABLE (
  verdict text, attempt int, args jsonb, kwargs jsonb, context jsonb, fence bigint, lease_seconds float,
  timeout_seconds int, lock_key text, bells jsonb
)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
  j jobs;
  head jobs;
  said text;
  rung jsonb := '[]';
BEGIN
  -- Wait for the row: skipping a locked one would throw the doorbell away.
  SELECT * INTO j FROM jobs WHERE id = p_id FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    said := 'unknown';  -- no proof of forgery: a message can overtake a caller's outer commit
  ELSIF j.task <> p_task THEN
    said := 'wrong_task';
  ELSIF j.state = 'running' AND j.lease_token = p_token THEN
    said := 'run';
  ELSIF j.state <> 'queued' THEN
    said := 'duplicate';
  ELSIF ops_paused() IS NOT NULL THEN
    said := 'paused';
  ELSIF j.expires_at <= clock_timestamp() THEN
    PERFORM ops_expire_job(p_id);
    said := 'expired';
    IF j.lock_key IS NOT NULL THEN
      rung := ops_ring_next(p_id, j.lock_key);
    END IF;
  ELSIF j.run_at > clock_timestamp() THEN
    said := 'not_due';
    UPDATE jobs SET ring_at = run_at WHERE id = p_id AND ring_at < run_at;
  END IF;
  IF said IS NOT NULL AND said <> 'run' THEN
    RETURN QUERY SELECT said, coalesce(j.attempt, 0), NULL::jsonb, NULL::jsonb, NULL::jsonb, NULL::bigint, NULL::float,
      NULL::int, j.lock_key, rung;
    RETURN;
  END IF;

  IF said IS NULL AND j.lock_key IS NOT NULL THEN
    SELECT * INTO head FROM jobs w WHERE w.lock_key = j.lock_key AND w.queue = j.queue AND w.state = 'queued'
      AND w.run_at <= now() AND (w.priority, w.seq) < (j.priority, j.seq) ORDER BY w.priority, w.seq LIMIT 1;
    IF EXISTS (SELECT FROM jobs r WHERE r.lock_key = j.lock_key AND r.state = 'running') THEN
      said := 'lock_busy';
    ELSIF head.id IS NOT NULL THEN
      said := 'not_head';
    END IF;
    IF said IS NOT NULL THEN
      -- The bell is spent. The head waits at the door; those behind it are rung when they become the head.
      UPDATE jobs SET ring_at = now() + CASE WHEN head.id IS NULL THEN interval '0' ELSE interval '15 s' END
        WHERE id = p_id;
      -- Ringing somebody else's bell is bounded: only when its own time has come, and then not again for a second.
      IF said = 'not_head' AND head.ring_at <= now() THEN
        rung := ops_ring(head.id);
      END IF;
      RETURN QUERY SELECT said, j.attempt, NULL::jsonb, NULL::jsonb, NULL::jsonb, NULL::bigint, NULL::float, NULL::int,
        j.lock_key, rung;
      RETURN;
    END IF;
  END IF;

  IF said IS NULL THEN
    BEGIN
      UPDATE jobs SET state = 'running', outcome = NULL, error = NULL, attempt = attempt + 1, lease_token = p_token,
        lease_until = clock_timestamp() + make_interval(secs => lease_seconds), suspect_at = NULL, began_at = NULL,
        worker = p_worker, worker_host = p_host, holders = p_holders, fence = nextval('ops_fence_seq'),
        started_at = clock_timestamp(), deadline_at = clock_timestamp() + make_interval(secs => timeout_seconds)
      WHERE id = p_id RETURNING * INTO j;
    EXCEPTION WHEN unique_violation THEN
      -- The second of two concurrent claims of a key.
      UPDATE jobs SET ring_at = now() WHERE id = p_id;
      RETURN QUERY SELECT 'lock_raced', j.attempt, NULL::jsonb, NULL::jsonb, NULL::jsonb, NULL::bigint, NULL::float,
        NULL::int, j.lock_key, '[]'::jsonb;
      RETURN;
    END;
  END IF;
  RETURN QUERY SELECT 'run', j.attempt, j.args, j.kwargs, j.context, j.fence, j.lease_seconds, j.timeout_seconds,
    j.lock_key, '[]'::jsonb;
END $$;

-- The last write before the effect starts. `go`; `cancelled`: a cancel was asked for in time; `lost`: not held any
-- more, start nothing. p_holders: the processes that must be gone before anyone may say the effect is dead.
CREATE FUNCTION ops_begin(p_id uuid, p_attempt int, p_token uuid, p_holders text[]) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  j jobs;
BEGIN
  UPDATE jobs SET began_at = coalesce(began_at, clock_timestamp()), holders = p_holders,
    lease_until = clock_timestamp() + make_interval(secs => lease_seconds), suspect_at = NULL
  WHERE id = p_id AND attempt = p_attempt AND lease_token = p_token AND state = 'running'
    AND cancel_requested_at IS NULL AND lease_until > clock_timestamp() AND clock_timestamp() < deadline_at
  RETURNING * INTO j;
  IF FOUND THEN
    RETURN 'go';
  END IF;
  PERFORM FROM jobs WHERE id = p_id AND attempt = p_attempt AND lease_token = p_token AND state = 'running'
    AND cancel_requested_at IS NOT NULL;
  RETURN CASE WHEN FOUND THEN 'cancelled' ELSE 'lost' END;
END $$;

-- Renew a lease. `go`; `cancelled`: still held, and somebody asked for its end; `lost`: not held any more.
CREATE FUNCTION ops_heartbeat(p_id uuid, p_attempt int, p_token uuid) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  asked boolean;
BEGIN
  UPDATE jobs SET suspect_at = NULL,
    lease_until = least(clock_timestamp() + make_interval(secs => lease_seconds), deadline_at + interval '30 s')
  WHERE id = p_id AND attempt = p_attempt AND lease_token = p_token AND state = 'running'
    AND clock_timestamp() < deadline_at + interval '30 s'
  RETURNING cancel_requested_at IS NOT NULL INTO asked;
  RETURN CASE WHEN asked IS NULL THEN 'lost' WHEN asked THEN 'cancelled' ELSE 'go' END;
END $$;

-- What an attempt that ended in p_outcome makes of its job. Success beats cancel; cancel beats retry and rescue;
-- failures count against max_attempts, interruptions and losses against max_rescues.
CREATE FUNCTION ops_verdict(j jobs, p_outcome text) RETURNS text
LANGUAGE sql STABLE AS $$
  SELECT CASE
    WHEN p_outcome = 'ok' THEN 'succeeded'
    WHEN p_outcome = 'cancelled' OR j.cancel_requested_at IS NOT NULL THEN 'cancelled'
    WHEN p_outcome IN ('failed', 'timeout') THEN
      CASE WHEN j.idempotent AND j.failures + 1 < j.max_attempts THEN 'queued' ELSE 'failed' END
    WHEN (j.began_at IS NULL OR j.idempotent) AND j.rescues < j.max_rescues THEN 'queued'
    ELSE 'failed'
  END
$$;

-- End the running attempt of a row that the caller has locked.
CREATE FUNCTION ops_end_attempt(j jobs, p_outcome text, p_error text, p_result jsonb, p_done uuid, p_retry_in interval)
RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  verdict text := ops_verdict(j, p_outcome);
  counted boolean := p_outcome IN ('failed', 'timeout');
  -- Doubles per failure, an hour at most, spread over 0.5 to 1.5 of itself: 2 s gives 1-3, 2-6, 4-12, 8-24 s.
  pause interval := CASE WHEN counted THEN coalesce(p_retry_in,
    make_interval(secs => least(j.backoff_seconds * power(2, least(j.failures, 12)), 3600) * (0.5 + random())))
    ELSE '0' END;
BEGIN
  UPDATE jobs SET state = verdict,
    outcome = CASE WHEN verdict = 'cancelled' THEN 'cancelled' ELSE p_outcome END,
    error = CASE WHEN verdict = 'succeeded' THEN NULL
      -- j.error: the reason of the cancel.
      WHEN verdict = 'cancelled' AND p_outcome IN ('lost', 'interrupted') THEN left(concat_ws('; ', 'cancelled', j.error,
        coalesce(p_error, p_outcome), CASE WHEN j.began_at IS NOT NULL THEN 'effect unknown' END), 4000)
      WHEN verdict = 'cancelled' THEN left(concat_ws('; ', coalesce(p_error, p_outcome), j.error), 4000)
      ELSE left(coalesce(p_error, p_outcome), 4000) END,
    result = CASE WHEN verdict = 'succeeded' THEN p_result END,
    failures = failures + counted::int,
    rescues = rescues + (verdict = 'queued' AND NOT counted)::int,
    run_at = CASE WHEN verdict = 'queued' THEN clock_timestamp() + pause ELSE run_at END,
    ring_at = CASE WHEN verdict = 'queued' THEN clock_timestamp() + pause ELSE ring_at END,
    rings = 0,
    finished_at = CASE WHEN verdict <> 'queued' THEN clock_timestamp() END,
    lease_until = NULL, suspect_at = NULL, lease_token = NULL, done_token = p_done
  WHERE id = j.id;
  RETURN verdict;
END $$;

-- Record how an attempt ended. Answers the job's state afterwards, or `late`: it was no longer this caller's to end,
-- which is recorded and changes nothing. Repeating the call after a lost answer is harmless. `bells` are to be rung
-- after commit.
CREATE FUNCTION ops_finish(
  p_id uuid, p_attempt int, p_token uuid, p_outcome text, p_error text DEFAULT NULL, p_result jsonb DEFAULT NULL,
  p_retry_in interval DEFAULT NULL, OUT state text, OUT bells jsonb
)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  j jobs;
BEGIN
  bells := '[]';
  SELECT * INTO j FROM jobs WHERE id = p_id FOR NO KEY UPDATE;
  IF j.state = 'running' AND j.attempt = p_attempt AND j.lease_token = p_token THEN
    state := ops_end_attempt(j, p_outcome, p_error, p_result, p_token, p_retry_in);
    IF j.lock_key IS NOT NULL OR state = 'queued' THEN
      bells := ops_ring_next(p_id, j.lock_key);
    END IF;
  ELSIF j.done_token = p_token AND (p_outcome <> 'ok' OR j.state = 'succeeded') THEN
    state := j.state;  -- said again; but a success that nobody has recorded is news, and late
  ELSE
    state := 'late';
    PERFORM ops_audit('job.late_result', 'job', p_id::text, NULL, jsonb_strip_nulls(jsonb_build_object(
      'attempt', p_attempt, 'outcome', p_outcome, 'error', left(p_error, 1000),
      'state', coalesce(j.state, 'removed'))), ops_job_context(p_id, coalesce(j.context, '{}')));
  END IF;
END $$;

-- Cancel: a queued job at once, a running one by asking its holder. Answers the state afterwards, or NULL: too late.
CREATE FUNCTION ops_cancel(p_id uuid, p_reason text DEFAULT NULL, OUT state text, OUT bells jsonb)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  j jobs;
BEGIN
  bells := '[]';
  SELECT * INTO j FROM jobs WHERE id = p_id FOR NO KEY UPDATE;
  IF j.state = 'queued' THEN
    UPDATE jobs SET state = 'cancelled', outcome = 'cancelled', error = p_reason,
      cancel_requested_at = clock_timestamp(), finished_at = clock_timestamp()
    WHERE id = p_id;
    state := 'cancelled';
    IF j.lock_key IS NOT NULL THEN
      bells := ops_ring_next(p_id, j.lock_key);
    END IF;
  ELSIF j.state = 'running' THEN
    -- A running job has no error yet: the reason waits there for the end.
    UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
      error = coalesce(error, left(p_reason, 1000))
    WHERE id = p_id;
    state := 'running';
  END IF;
END $$;

-- A queued job whose time has passed. The caller holds its row.
CREATE FUNCTION ops_expire_job(p_id uuid) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
  UPDATE jobs SET state = 'cancelled', outcome = 'expired', error = CASE WHEN attempt = 0
      THEN 'its time passed before it started' ELSE 'its time passed while it waited to be tried again' END,
    finished_at = clock_timestamp()
  WHERE id = p_id AND state = 'queued' AND expires_at <= clock_timestamp()
$$;

-- One look at what may have died: returns the jobs that were moved and the bells to ring.
-- A lease that ran out is marked at the first look and acted on at a later one, when the mark is older than the
-- grace; never within one grace of the server's start; a mark older than two graces (nobody looked for a while) is
-- set anew. p_dead: tokens of attempts of which the caller has seen every process to be gone.
-- Any number of callers may look: each takes rows that no other has. No lock says whose turn it is, since anyone who can
-- log in could hold it for ever.
CREATE FUNCTION ops_rescue(p_grace interval DEFAULT '4 s', p_dead uuid[] DEFAULT '{}')
RETURNS TABLE (id uuid, state text, outcome text, bells jsonb)
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
  j jobs;
BEGIN
  IF ops_paused() = 'restored' THEN
    RETURN;  -- what ran when the backup was made is not over because this database says so
  END IF;
  UPDATE jobs SET suspect_at = clock_timestamp() WHERE id IN (
    SELECT id FROM jobs WHERE state = 'running' AND lease_until < clock_timestamp()
      AND (suspect_at IS NULL OR suspect_at < clock_timestamp() - 2 * p_grace)
    FOR NO KEY UPDATE SKIP LOCKED);
  FOR j IN
    SELECT * FROM jobs WHERE state = 'running' AND (lease_token = ANY (p_dead) OR (
      lease_until < clock_timestamp() AND suspect_at < clock_timestamp() - p_grace
      AND pg_postmaster_start_time() < clock_timestamp() - p_grace))
    ORDER BY lease_until LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
  LOOP
    id := j.id;
    outcome := CASE WHEN j.began_at IS NULL THEN 'interrupted' ELSE 'lost' END;
    state := ops_end_attempt(j, outcome, CASE WHEN j.lease_token = ANY (p_dead)
        THEN format('worker %s died', j.worker) ELSE format('worker %s stopped answering', j.worker) END
      || CASE WHEN j.began_at IS NULL THEN ' before the work began'
         ELSE ' after the work had begun; nobody can know whether it took effect' END, NULL, NULL, NULL);
    bells := CASE WHEN j.lock_key IS NOT NULL OR state = 'queued' THEN ops_ring_next(j.id, j.lock_key) ELSE '[]' END;
    RETURN NEXT;
  END LOOP;
  FOR j IN
    SELECT * FROM jobs WHERE state = 'queued' AND expires_at <= clock_timestamp()
    ORDER BY expires_at LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
  LOOP
    PERFORM ops_expire_job(j.id);
    id := j.id;
    state := 'cancelled';
    outcome := 'expired';
    bells := CASE WHEN j.lock_key IS NULL THEN '[]' ELSE ops_ring_next(j.id, j.lock_key) END;
    RETURN NEXT;
  END LOOP;
END $$;

-- The queues in which something is due for a ring.
CREATE FUNCTION ops_due_queues() RETURNS SETOF text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
  WITH RECURSIVE queues AS (
    (SELECT queue FROM jobs WHERE state = 'queued' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT j.queue FROM jobs j WHERE j.state = 'queued' AND j.queue > q.queue ORDER BY j.queue LIMIT 1)
    FROM queues q WHERE q.queue IS NOT NULL
  )
  SELECT q.queue FROM queues q WHERE q.queue IS NOT NULL AND EXISTS (
    -- The first entry of an index range, whatever the statistics say of the rest.
    SELECT FROM generate_series(0, 9) p WHERE (SELECT j.ring_at FROM jobs j
      WHERE j.state = 'queued' AND j.queue = q.queue AND j.priority = p ORDER BY j.ring_at LIMIT 1) <= now())
$$;

-- Take up to p_room jobs of a queue whose bell is due, whatever became of earlier bells, and give each a longer pause
-- (2 s doubling to 2 min). A head that waits for its key is looked at again in 3 s; those behind it in 15 s, and less
-- often the longer they wait (a minute at most), since ten thousand of them would take up every look; the end of the
-- key's holder rings sooner. The caller commits first and publishes after.
-- Rows are found by index, whatever the statistics say: they are stale when a backlog has just been written.
CREATE FUNCTION ops_relay(p_queue text, p_room int)
RETURNS TABLE (id uuid, task text, queue text, priority int)
LANGUAGE sql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
  WITH due AS MATERIALIZED (
    -- Locked where they are read: what another relay has just taken is looked at again, and is due no more.
    SELECT d.* FROM generate_series(0, 9) AS p, LATERAL (
      SELECT j.* FROM jobs j WHERE j.state = 'queued' AND j.queue = p_queue AND j.priority = p AND j.ring_at <= now()
      ORDER BY j.ring_at LIMIT 200 FOR NO KEY UPDATE SKIP LOCKED) d
    WHERE (SELECT ops_paused()) IS NULL
  ), looked AS (
    SELECT l.id, l.priority, l.ring_at, CASE
      WHEN l.run_at > clock_timestamp() THEN 'early'  -- somebody moved its time by hand
      WHEN l.lock_key IS NULL THEN 'ring'
      WHEN EXISTS (SELECT FROM jobs w WHERE w.lock_key = l.lock_key AND w.queue = l.queue AND w.state = 'queued'
        AND w.run_at <= now() AND (w.priority, w.seq) < (l.priority, l.seq)) THEN 'behind'
      WHEN EXISTS (SELECT FROM jobs r WHERE r.lock_key = l.lock_key AND r.state = 'running') THEN 'waits'
      ELSE 'ring' END AS answer
    FROM due l
  ), ranked AS (
    SELECT k.*, row_number() OVER (PARTITION BY k.answer ORDER BY k.priority, k.ring_at) AS place FROM looked k
  ), moved AS (
    UPDATE jobs j SET rings = j.rings + (r.answer = 'ring')::int, ring_at = CASE r.answer
      WHEN 'ring' THEN clock_timestamp() + least(interval '2 s' * power(2, least(j.rings, 6)), interval '2 min')
      WHEN 'waits' THEN clock_timestamp() + interval '3 s'
      WHEN 'early' THEN j.run_at
      ELSE clock_timestamp() + greatest(interval '15 s', least((now() - j.run_at) / 4, interval '1 min')) END
    FROM ranked r WHERE j.id = r.id AND (r.answer <> 'ring' OR r.place <= p_room)
    RETURNING j.id, j.task, j.queue, j.priority, r.answer, r.place
  )
  SELECT m.id, m.task, m.queue, m.priority::int FROM moved m WHERE m.answer = 'ring' ORDER BY m.priority, m.place
$$;

-- May a periodic job run now? True for one caller per interval, however many beats there are.
CREATE FUNCTION ops_tick_due(p_name text, p_every interval) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  INSERT INTO ticks (name) VALUES (p_name) ON CONFLICT DO NOTHING;
  -- A little early is due: two beats of one interval drift. A time to come is one of before the clock was set back.
  UPDATE ticks SET last_run_at = clock_timestamp()
  WHERE name = p_name AND (last_run_at IS NULL OR last_run_at <= clock_timestamp() - p_every * 0.9
    OR last_run_at > clock_timestamp() + p_every);
  RETURN FOUND;
END $$;

-- Close a tick: one entry when it changed something, one per hour with the count of idle runs. An empty object stands
-- for what is recorded elsewhere.
CREATE FUNCTION ops_tick_done(p_name text, p_details jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  t ticks;
BEGIN
  UPDATE ticks SET last_success_at = clock_timestamp(),
    idle_runs = CASE WHEN p_details IS NULL THEN idle_runs + 1 ELSE idle_runs END
  WHERE name = p_name RETURNING * INTO t;
  IF p_details <> '{}' THEN
    PERFORM ops_audit('tick.changed', 'tick', p_name, NULL, p_details);
  END IF;
  IF t.idle_runs > 0 AND (t.reported_at IS NULL OR t.reported_at < clock_timestamp() - interval '1 hour') THEN
    UPDATE ticks SET reported_at = clock_timestamp(), idle_runs = 0 WHERE name = p_name;
    PERFORM ops_audit('tick.idle', 'tick', p_name, NULL, jsonb_build_object('runs', t.idle_runs));
  END IF;
END $$;
