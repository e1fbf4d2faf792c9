-- The job ledger: one attempt, from the doorbell to its end.

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
